"""``calibrate``: find the best places of the full steps of a model's runs, by running it.

    one run in full            the reference, and the Gram matrices of its features
    for each number of full steps, order and granularity
        the paper's schedule, growing gaps, the dynamic program          each run, and judged by its samples
        the best of them, a few times with one full step moved

The paper's schedule is among the candidates wherever it has that number of full steps, so on the samples at hand the result is
never worse. A list is chosen by the mean over samples, unless its worst sample is much worse than the paper's.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from taylorseer_fx.backend import TaylorSeerBackend
from taylorseer_fx.config import GRANULARITIES, MAX_ORDER
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.judging import Judge, OnTrial, Run, Trial, best_of, mean_of, on_held_out, papers_of
from taylorseer_fx.plan_file import GraphSignature, PlanFile, RunSignature
from taylorseer_fx.planned import signature_of
from taylorseer_fx.runtime.state import StreamState
from taylorseer_fx.samples import Sample, samples_of
from taylorseer_fx.search import Matrix
from taylorseer_fx.trials import IN_FULL, trying
from taylorseer_fx.versions import versions

SKETCH = 2**14  # elements of a buffer that the Gram matrices are taken over


@dataclass(frozen=True)
class Calibration:
    """All trials of ``calibrate``; the first of each setting is the paper's schedule, where it has that many full steps."""

    num_steps: int
    trials: tuple[Trial, ...]
    graphs: Mapping[str, tuple[GraphSignature, ...]]
    runs: RunSignature | None = None

    def settings(self) -> list[tuple[int, int, str]]:
        """The settings that were calibrated, each once: number of full steps, order and granularity."""
        return list(dict.fromkeys((trial.num_full, trial.order, trial.granularity) for trial in self.trials))

    def of(self, num_full: int, order: int, granularity: str) -> list[Trial]:
        """The trials of a setting."""
        wanted = (num_full, order, granularity)
        return [trial for trial in self.trials if (trial.num_full, trial.order, trial.granularity) == wanted]

    def best(self, num_full: int, order: int, granularity: str) -> Trial:
        """The trial to use."""
        return best_of(self.of(num_full, order, granularity))

    def papers(self, num_full: int, order: int, granularity: str) -> Trial | None:
        """The paper's schedule, if it has that number of full steps."""
        return papers_of(self.of(num_full, order, granularity))

    def plan(self, order: int | None = None, granularity: str | None = None) -> PlanFile:
        """The lists to use, with their signature; of the order and granularity with the best mean, unless these are given.

        Raises:
            ConfigError: that order or granularity was not calibrated.
        """
        pairs = dict.fromkeys((trial.order, trial.granularity) for trial in self.trials)
        chosen = [pair for pair in pairs if order in (None, pair[0]) and granularity in (None, pair[1])]
        if not chosen:
            there = " or ".join(f"{order}, {name!r}" for order, name in pairs)
            raise ConfigError("order, granularity", there, (order, granularity))
        numbers = sorted({trial.num_full for trial in self.trials})
        best = {pair: [self.best(number, *pair) for number in numbers] for pair in chosen}
        pair = max(chosen, key=lambda pair: mean_of([trial.mean_db for trial in best[pair]]))
        return PlanFile(
            num_steps=self.num_steps,
            order=pair[0],
            granularity=pair[1],
            full_steps=tuple(trial.full_steps for trial in best[pair]),
            graphs=self.graphs[pair[1]],
            runs=self.runs,
            curve=tuple(self._point(trial) for trial in best[pair]),
            versions=versions(),
        )

    def _point(self, trial: Trial) -> dict[str, float | None]:
        paper = self.papers(trial.num_full, trial.order, trial.granularity)
        return {"num_full": trial.num_full, **_decibels("", trial), **(_decibels("paper_", paper) if paper is not None else {})}


def _decibels(name: str, trial: Trial) -> dict[str, float | None]:
    values = dict(zip(("mean_db", "worst_db"), (trial.mean_db, trial.worst_db), strict=True))
    if trial.held_out is not None:
        values |= dict(zip(("held_out_mean_db", "held_out_worst_db"), trial.held_out, strict=True))
    return {name + key: round(value, 2) for key, value in values.items()}


def calibrate(
    run: Run,
    backend: TaylorSeerBackend,
    num_steps: int,
    full_steps: Sequence[int] = (8, 10, 12, 16),
    orders: Sequence[int] | None = None,
    granularities: Sequence[str] | None = None,
    moves: int = 4,
    held_out: Run | None = None,
    on_trial: OnTrial = lambda _: None,
) -> Calibration:
    """Find the lists of full steps that bring ``run`` nearest to its result in full.

    Args:
        run: makes samples by the compiled model, the same ones whenever it is called (fixed seeds); returns pictures, a batch of
            them, or the output of a pipeline. Better with more samples, and with samples like those that will be made.
        backend: that of the model. Its settings are as before afterwards; its streams begin anew.
        num_steps: denoising steps of a sample in ``run``.
        full_steps: numbers of full steps to find lists for, each 2 to ``num_steps``.
        orders: orders to try, up to the backend's, which is the default.
        granularities: "module", "stack" or both; the default is the backend's own. For another one the model is compiled again.
        moves: rounds in which single full steps of the best list are moved by one; each takes up to four runs.
        held_out: makes other samples than ``run``, by other noise and prompts, which nothing is chosen by. The lists found, and
            the paper's, are judged by them too; the plan's curve holds both.
        on_trial: called with a line of text for each run.

    Raises:
        ConfigError: an argument is wrong, ``run`` makes samples of other shapes each time, or it has another number of steps.
    """
    orders = (backend.config.order,) if orders is None else tuple(orders)
    granularities = (backend.config.granularity,) if granularities is None else tuple(granularities)
    _check(backend, num_steps, full_steps, orders, granularities)
    trials: list[Trial] = []
    graphs: dict[str, tuple[GraphSignature, ...]] = {}
    runs: list[RunSignature] = []
    for granularity in granularities:
        with _granularity(backend, granularity):
            recorder = _Recorder(num_steps, backend.config.storage.num_buffers)
            on_trial(f"{granularity}: in full")
            reference = _in_full(run, backend, recorder, runs)
            unseen = _plainly_in_full(held_out, backend) if held_out is not None else None
            graphs[granularity] = tuple(dict.fromkeys(map(signature_of, backend.numbers(granularity))))
            for order in orders:
                judge = Judge(run, backend, reference, order, granularity, num_steps, on_trial)
                for num_full in sorted(set(full_steps), reverse=True):
                    found = judge.search(num_full, recorder.gram, moves)
                    if held_out is not None and unseen is not None:
                        found = on_held_out(found, Judge(held_out, backend, unseen, order, granularity, num_steps, on_trial))
                    trials += found
    return Calibration(num_steps, tuple(trials), graphs, runs[0] if runs else None)


def _check(
    backend: TaylorSeerBackend, num_steps: int, full_steps: Sequence[int], orders: Sequence[int], granularities: Sequence[str]
) -> None:
    if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 2:
        raise ConfigError("num_steps", "an int of at least 2", num_steps)
    for count in full_steps:
        if not isinstance(count, int) or isinstance(count, bool) or not 2 <= count <= num_steps:
            raise ConfigError("full_steps", f"numbers of full steps, 2 to {num_steps}", count)
    if backend.config.memory_budget is not None:
        hint = "A budget chooses the granularity by itself."
        raise ConfigError("memory_budget", "left out of a backend that is calibrated", backend.config.memory_budget, hint)
    storage = backend.config.storage
    highest = storage.order if storage.keeps_differences else min(storage.num_buffers - 1, MAX_ORDER)
    lowest = storage.order if storage.keeps_differences else 0  # of differences, each order has a graph of its own
    for order in orders:
        if not isinstance(order, int) or isinstance(order, bool) or not lowest <= order <= highest:
            raise ConfigError("orders", f"{lowest} to {highest}, which the backend has buffers for", order)
    for granularity in granularities:
        if granularity not in GRANULARITIES:
            raise ConfigError("granularities", "of " + " and ".join(map(repr, GRANULARITIES)), granularity)


@contextmanager
def _granularity(backend: TaylorSeerBackend, granularity: str) -> Iterator[None]:
    """Compile for ``granularity`` inside the block, if that is not the backend's own."""
    if granularity == backend.config.granularity:
        yield
        return
    before = backend.config
    backend.config = replace(before, granularity=granularity)
    torch.compiler.reset()
    backend.reset()
    try:
        yield
    finally:
        backend.config = before
        torch.compiler.reset()
        backend.reset()


def _in_full(run: Run, backend: TaylorSeerBackend, recorder: "_Recorder", runs: list[RunSignature]) -> list[Sample]:
    runtime = backend._runtime
    before = runtime.on_run
    with trying(backend, IN_FULL):
        runtime.on_full, runtime.on_run = recorder, lambda pipe: runs.append(RunSignature.of(pipe))
        try:
            reference = samples_of(run())
        finally:
            runtime.on_full, runtime.on_run = None, before
    if recorder.num_seen != recorder.num_steps:
        raise ConfigError("num_steps", f"{recorder.num_seen}, the number of steps that run() has", recorder.num_steps)
    if not all(np.isfinite(each).all() for each in reference):
        raise ConfigError("run", "a function whose samples in full are finite numbers", "inf or NaN")
    return reference


def _plainly_in_full(run: Run, backend: TaylorSeerBackend) -> list[Sample]:
    with trying(backend, IN_FULL):
        return samples_of(run())


class _Recorder:
    """The Gram matrix of all features of a run, over a part of their elements, summed over streams and samples."""

    def __init__(self, num_steps: int, num_buffers: int) -> None:
        self.num_steps, self.num_buffers, self.num_seen = num_steps, num_buffers, 0
        self.gram: Matrix = np.zeros((num_steps, num_steps))
        self._seen: dict[int, tuple[StreamState, list[int], list[torch.Tensor]]] = {}

    def __call__(self, state: StreamState, step: int) -> None:
        last = state.first_step + step  # of the run: a stream may begin late
        self.num_seen = max(self.num_seen, last + 1)
        if last >= self.num_steps:
            return
        _, steps, rows = self._seen.setdefault(id(state), (state, [], []))
        newest = state.by_age(self.num_buffers)[: len(state.buffers) // self.num_buffers]
        steps.append(last)
        rows.append(torch.cat([_part(buffer) for buffer in newest]))
        products = (torch.stack(rows) @ rows[-1]).double().cpu().numpy()
        self.gram[last, steps] += products  # which are all since it began, but for those that it missed
        self.gram[steps[:-1], last] += products[:-1]


def _part(buffer: torch.Tensor) -> torch.Tensor:
    flat = buffer.detach().flatten()
    return flat[:: -(-len(flat) // SKETCH)].float()
