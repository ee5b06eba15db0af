"""The paper's claims in kind, on the trained models: Frechet distance and PSNR over interval and order at 50 steps.

Each cell is a sampling run of its own from the same noise; the run in full and runs of fewer steps at equal compute stand beside.
Cells are kept in a JSON as they are done, so that a run that was broken off goes on where it was.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taylorseer_fx.bench.fidelity import psnr, ssim
from taylorseer_fx.bench.fleet import draw_batches
from taylorseer_fx.bench.frechet import distance_from_real, feature_space
from taylorseer_fx.bench.results import describe_machine
from taylorseer_fx.entry import taylorseer_backend
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.shipped import DIGITS, NUM_CLASSES, Judging, Shipped

NUM_STEPS, WARMUP = 50, 3
INTERVALS, ORDERS, GRANULARITIES = tuple(range(2, 11)), tuple(range(5)), ("module", "stack")
MAIN_INTERVALS, MAIN_ORDERS = (3, 5, 7, 10), (0, 1, 2)  # on all samples; the other cells on the first of them
FEWER_SAMPLES = 500
MIN_BATCHES = 5  # for each worker; for fewer none are started
GUIDANCE = 1.0  # plain conditional sampling: half the work, and nearer to the real digits in distribution


@dataclass(frozen=True)
class Cell:
    """A setting. ``method``: "full", "fewer steps", "module" or "stack"; ``interval`` 1 is every step in full."""

    method: str
    order: int
    interval: int
    num_samples: int

    @property
    def key(self) -> str:
        return f"{self.method}, order {self.order}, interval {self.interval}, {self.num_samples} samples"

    @property
    def full_steps(self) -> int:
        """The number of steps that are executed."""
        return len(Schedule(self.interval, WARMUP).full_steps_of(NUM_STEPS))


def cells(num_samples: int, brief: bool = False) -> Iterator[Cell]:
    """The most telling first; no others if ``brief``."""
    fewer = min(FEWER_SAMPLES, num_samples)
    yield Cell("full", 0, 1, num_samples)
    for interval in MAIN_INTERVALS if brief else INTERVALS:
        yield Cell("fewer steps", 0, interval, num_samples)
    main: list[Cell] = []
    rest: list[Cell] = []
    for interval in INTERVALS:
        for order in ORDERS:
            is_main = interval in MAIN_INTERVALS and order in MAIN_ORDERS
            for granularity in GRANULARITIES:
                (main if is_main else rest).append(Cell(granularity, order, interval, num_samples if is_main else fewer))
    yield from main if brief else (*main, *rest)


@dataclass(frozen=True)
class Sampler:
    """Draws in batches, so that one compiled graph serves all; by ``workers`` of Ray, in this process for 0 or few batches.

    ``compiler`` "eager" is for tests.
    """

    model: Shipped = DIGITS
    batch: int = 100
    compiler: str = "inductor"
    num_steps: int = NUM_STEPS
    workers: int = 0

    def __call__(self, cell: Cell) -> Tensor:
        """``[cell.num_samples, 1, 8, 8]``; batch ``i`` is the same noise and classes in every cell.

        Raises:
            ValueError: ``workers`` are to draw batches that are not all of one size.
        """
        count = math.ceil(cell.num_samples / self.batch)
        if not self.workers or count < MIN_BATCHES * self.workers:
            return torch.cat([*map(self.batches_of(cell), range(count))])
        if cell.num_samples % self.batch:
            raise ValueError(f"with workers, samples must be a multiple of {self.batch}, got {cell.num_samples}")
        return draw_batches(partial(self.batches_of, cell), count, self.workers)

    def batches_of(self, cell: Cell) -> Callable[[int], Tensor]:
        """Compile for a cell; returns what draws batch ``i``."""
        torch._dynamo.reset()
        forget, denoiser = self._denoiser(cell)
        steps = cell.full_steps if cell.method == "fewer steps" else self.num_steps

        def draw(number: int) -> Tensor:
            begin = number * self.batch
            labels = wanted(begin, min(self.batch, cell.num_samples - begin))
            drawn = self.model.sample(denoiser, labels, num_steps=steps, guidance_scale=GUIDANCE, seed=number)
            forget()
            return drawn

        return draw

    def _denoiser(self, cell: Cell) -> tuple[Callable[[], None], Callable[..., Any]]:
        model = self.model.load().requires_grad_(False)
        if cell.method in GRANULARITIES:
            backend = taylorseer_backend(cell.order, cell.interval, WARMUP, granularity=cell.method, compiler=self.compiler)
            return backend.reset, torch.compile(model, backend=backend)
        return (lambda: None), model if self.compiler == "eager" else torch.compile(model, backend=self.compiler)


def wanted(begin: int, count: int) -> Tensor:
    """Classes in turn."""
    return torch.arange(begin, begin + count) % NUM_CLASSES


def run_claims(
    path: Path,
    num_samples: int,
    sampler: Sampler,
    on_cell: Callable[[int, int, str], None] = lambda *_: None,
    limit: int | None = None,
    brief: bool = False,
) -> bool:
    """Measure cells that ``path`` does not hold yet, at most ``limit`` of them; returns whether all are done.

    The pictures of the run in full are kept beside ``path`` while cells are missing.

    Raises:
        ValueError: ``path`` holds cells of other settings.
    """
    todo = list(cells(num_samples, brief))
    settings = {"num_steps": sampler.num_steps, "warmup": WARMUP, "guidance": GUIDANCE, "num_samples": num_samples}
    content = _opened(path, {"model": sampler.model.name, **settings})
    missing = [cell for cell in todo if cell.key not in content["cells"]]
    kept = path.with_suffix(".full.pt")
    if missing:
        reference = _reference(kept, todo[0], sampler)
        judge = sampler.model.judge()
        for cell in missing[:limit]:
            on_cell(len(content["cells"]), len(todo), cell.key)
            samples = reference if cell == todo[0] else sampler(cell)
            content["cells"][cell.key] = (
                asdict(cell) | {"full_steps": cell.full_steps} | figures(samples, reference, sampler.model, judge)
            )
            path.write_text(json.dumps(content, indent=1) + "\n")
    done = len(content["cells"]) == len(todo)
    if done:
        kept.unlink(missing_ok=True)
    return done


def _opened(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": describe_machine(), "settings": settings, "cells": {}}
        if settings["model"] == DIGITS.name:  # of the other model the real pictures are not at hand
            content["frechet_between_real_halves"] = feature_space().between_halves()
        return content
    content = json.loads(path.read_text())
    if content["settings"] != settings:
        raise ValueError(f"{path} holds cells of {content['settings']}, not of {settings}: move it away to begin anew")
    return content


def _reference(kept: Path, cell: Cell, sampler: Sampler) -> Tensor:
    if kept.exists():
        loaded: Tensor = torch.load(kept, weights_only=True)
        return loaded
    samples = sampler(cell)
    torch.save(samples, kept)
    return samples


def figures(samples: Tensor, reference: Tensor, model: Shipped, judge: Judging) -> dict[str, float | None]:
    """Measure one cell against the run in full from the same noise, and against the real pictures."""
    same = reference[: len(samples)]
    first = samples[:FEWER_SAMPLES]
    return {
        "psnr_db": _psnr_unless_same(samples, same),
        "psnr_db_of_first_500": _psnr_unless_same(first, same[:FEWER_SAMPLES]),
        "ssim": ssim(samples, same),
        "frechet": distance_from_real(model, samples),
        "frechet_of_first_500": distance_from_real(model, first),
        "class_accuracy": judge.accuracy(samples, wanted(0, len(samples))),
    }


def _psnr_unless_same(samples: Tensor, reference: Tensor) -> float | None:
    return None if torch.equal(samples, reference) else psnr(samples, reference)
