"""Runs the cells and keeps each figure as it is found, so that a run that was broken off goes on where it was."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.fidelity.cells import GRANULARITIES, HEADLINE, PAPER, Cell, calibrations, cells, ways
from benchmarks.fidelity.subjects import SUBJECTS, Compiled, Noise, decibels
from taylorseer_fx import calibrate
from taylorseer_fx.bench.fidelity import psnr
from taylorseer_fx.bench.frechet import distance_from_real
from taylorseer_fx.bench.results import describe_machine
from taylorseer_fx.runtime.placement import AnySchedule
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.shipped import Shipped
from taylorseer_fx.trials import IN_FULL

HELD_OUT = Noise(seed=20261127)
CALIBRATED_ON = Noise(seed=1, classes=(0, 1, 2, 3, 4), count=20)
HEADLINE_BATCHES = 5  # of other noise, each of HELD_OUT's size

Say = Callable[[str], None]


RESULTS = Path(__file__).parents[1] / "results"


def results_path(model: str) -> Path:
    """The record of a model."""
    return RESULTS / f"fidelity-{model}.json"


def recorded() -> dict[str, Any]:
    """The records of both models as one: settings and machine are those of the first."""
    first, *others = (json.loads(results_path(subject.name).read_text()) for subject in SUBJECTS)
    for other in others:
        for group in ("cells", "headline"):
            first[group] |= other[group]
    content: dict[str, Any] = first
    return content


class Record:
    """The figures of a model found so far, in a JSON file."""

    def __init__(self, model: str) -> None:
        self.path = path = results_path(model)
        self.content: dict[str, Any] = (
            json.loads(path.read_text())
            if path.exists()
            else {"machine": describe_machine(), "settings": _settings(), "cells": {}, "headline": {}}
        )
        if self.content["settings"] != _settings():
            raise ValueError(f"{path} holds figures of other settings: move it away to begin anew")

    def put(self, group: str, key: str, value: dict[str, Any]) -> None:
        self.content[group][key] = value
        self.path.write_text(json.dumps(self.content, indent=0) + "\n")


def _settings() -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(
        json.dumps({"held_out": asdict(HELD_OUT), "calibrated_on": asdict(CALIBRATED_ON), "headline_batches": HEADLINE_BATCHES})
    )
    return settings


def measure(subject: Shipped, granularity: str, record: Record, say: Say, compiler: str = "inductor") -> None:
    """All cells of a model and granularity that ``record`` lacks."""
    runner = _Runner(Compiled(subject, granularity, compiler), record, say)
    runner.plain_cells()
    runner.calibrated_cells()
    runner.headline()


class _Runner:
    def __init__(self, compiled: Compiled, record: Record, say: Say) -> None:
        self._compiled, self._record, self._say = compiled, record, say
        self._in_full = cache(lambda num_steps, guidance: compiled.draw(HELD_OUT, num_steps, guidance))

    def plain_cells(self) -> None:
        for cell in cells(self._compiled.subject.name, self._compiled.granularity):
            if cell.key in self._record.content["cells"]:
                continue
            if cell.kind == "fewer steps":
                self._put(cell, self._compiled.draw(HELD_OUT, cell.num_full, cell.guidance), None)
            else:
                self._try(cell, ways(cell.num_steps, cell.num_full)[cell.kind])

    def calibrated_cells(self) -> None:
        """Lists found by ``calibrate`` on other noise and half of the classes."""
        for num_steps, guidance, numbers in calibrations():
            wanted = [self._calibrated(num_steps, guidance, number) for number in numbers]
            missing = [cell for cell in wanted if cell.key not in self._record.content["cells"]]
            if not missing:
                continue
            found = calibrate(
                lambda num_steps=num_steps, guidance=guidance: self._calibration_run(num_steps, guidance),
                self._compiled.backend,
                num_steps,
                full_steps=[cell.num_full for cell in missing],
                orders=(1,),
            )
            for cell in missing:
                self._try(cell, found.best(cell.num_full, 1, cell.granularity).full_steps)

    def _calibration_run(self, num_steps: int, guidance: float) -> Tensor:
        subject = self._compiled.subject
        labels, seed = CALIBRATED_ON.labels, CALIBRATED_ON.seed
        pictures = subject.sample(self._compiled.model, labels, num_steps=num_steps, guidance_scale=guidance, seed=seed)
        return pictures.clamp(-1, 1)

    def _calibrated(self, num_steps: int, guidance: float, num_full: int) -> Cell:
        return Cell(self._compiled.subject.name, self._compiled.granularity, num_steps, guidance, num_full, "calibrated")

    def _try(self, cell: Cell, steps: tuple[int, ...]) -> None:
        schedule = Schedule(full_steps=steps, num_steps=cell.num_steps)
        drawn = self._compiled.draw(HELD_OUT, cell.num_steps, cell.guidance, schedule, cell.order, cell.forecaster)
        self._put(cell, drawn, steps)

    def _put(self, cell: Cell, drawn: Tensor, steps: tuple[int, ...] | None) -> None:
        each = decibels(drawn, self._in_full(cell.num_steps, cell.guidance))
        unseen = [i for i, label in enumerate(HELD_OUT.labels.tolist()) if label not in CALIBRATED_ON.classes]
        figures = {"mean_db": each.mean(), "worst_db": each.min(), "mean_db_of_unseen_classes": each[unseen].mean()}
        content = asdict(cell) | {"full_steps": steps} | {name: round(float(value), 2) for name, value in figures.items()}
        self._record.put("cells", cell.key, content)
        self._say(f"{cell.key}: {content['mean_db']:.1f} dB, worst {content['worst_db']:.1f}")

    def headline(self) -> None:
        """The headline settings on many pictures: decibels of each, of all together, and the distance from the real ones."""
        name, granularity = self._compiled.subject.name, self._compiled.granularity
        for num_steps, num_full in HEADLINE:
            cells = {kind: Cell(name, granularity, num_steps, 2.0, num_full, kind) for kind in (PAPER, "default", "calibrated")}
            lists = {kind: tuple(self._record.content["cells"][cell.key]["full_steps"]) for kind, cell in cells.items()}
            schedules = {kind: (num_steps, Schedule(full_steps=steps, num_steps=num_steps)) for kind, steps in lists.items()}
            if granularity == GRANULARITIES[0]:
                schedules |= {"in full": (num_steps, IN_FULL), "fewer steps": (num_full, IN_FULL)}
            for kind, (steps, schedule) in schedules.items():
                key = Cell(name, granularity, num_steps, 2.0, num_full, kind).key
                if key not in self._record.content["headline"]:
                    figures = self._on_many(steps, schedule, num_steps)
                    self._record.put("headline", key, figures)
                    self._say(f"{key}: {figures}")

    def _on_many(self, steps: int, schedule: Schedule, num_steps: int) -> dict[str, Any]:
        reference = many_in_full(self._compiled, num_steps)
        pictures = reference if (steps, schedule) == (num_steps, IN_FULL) else many(self._compiled, steps, schedule)
        each = decibels(pictures, reference)
        return {
            "num_samples": len(pictures),
            "mean_db": round(float(each.mean()), 2),
            "worst_db": round(float(each.min()), 2),
            "all_db": round(min(psnr(pictures, reference), 100.0), 2),
            "frechet": round(distance_from_real(self._compiled.subject, pictures), 3),
        }


def many(compiled: Compiled, num_steps: int, schedule: AnySchedule) -> Tensor:
    """Pictures of ``HEADLINE_BATCHES`` noises, at guidance 2."""
    batches = [Noise(HELD_OUT.seed + 1 + i) for i in range(HEADLINE_BATCHES)]
    return torch.cat([compiled.draw(noise, num_steps, 2.0, schedule) for noise in batches])


_IN_FULL: dict[tuple[str, int], Tensor] = {}


def many_in_full(compiled: Compiled, num_steps: int) -> Tensor:
    """The same, every step in full: drawn once for both granularities."""
    key = compiled.subject.name, num_steps
    if key not in _IN_FULL:
        _IN_FULL[key] = many(compiled, num_steps, IN_FULL)
    return _IN_FULL[key]
