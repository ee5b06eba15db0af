"""``calibrate``: find where the full steps of a model's runs should stand, by really running it.

    one run in full            the reference, and the Gram matrices of its features
    for each number of full steps, order and granularity
        the paper's schedule, growing gaps, the dynamic program          each run, and judged by its samples
        the best of them, a few times with one full step moved

The paper's schedule is among the candidates wherever it has that number of full steps, so on the samples at hand the result is
never worse. A list is chosen by the mean over samples, unless its worst sample is much worse than the paper's.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from taylorseer_fx.backend import TaylorSeerBackend
from taylorseer_fx.config import GRANULARITIES, MAX_ORDER
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.plan_file import GraphSignature, PlanFile, RunSignature
from taylorseer_fx.planned import signature_of
from taylorseer_fx.runtime.placement import place
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.runtime.state import StreamState
from taylorseer_fx.samples import Sample, decibels, samples_of
from taylorseer_fx.search import Matrix, family, neighbours, programmed
from taylorseer_fx.trials import IN_FULL, trying
from taylorseer_fx.versions import versions

WARMUPS = (3, 2, 1)  # of the paper's schedules: for FLUX, DiT and HunyuanVideo
TOLERATED = 1.0  # dB that the worst sample may be below the paper's worst
SKETCH = 2**14  # elements of a buffer that the Gram matrices are taken over

Run = Callable[[], Any]
OnTrial = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """A list of full steps that was run: decibels against the run in full, mean over samples and worst sample."""

    full_steps: tuple[int, ...]
    order: int
    granularity: str
    source: str
    mean_db: float
    worst_db: float

    @property
    def num_full(self) -> int:
        return len(self.full_steps)


@dataclass(frozen=True)
class Calibration:
    """All trials of ``calibrate``; the first of each setting is the paper's schedule, where it has that many full steps."""

    num_steps: int
    trials: tuple[Trial, ...]
    graphs: Mapping[str, tuple[GraphSignature, ...]]
    runs: RunSignature | None = None

    def settings(self) -> list[tuple[int, int, str]]:
        """Number of full steps, order and granularity of what was calibrated, each once."""
        return list(dict.fromkeys((trial.num_full, trial.order, trial.granularity) for trial in self.trials))

    def of(self, num_full: int, order: int, granularity: str) -> list[Trial]:
        """The trials of a setting."""
        wanted = (num_full, order, granularity)
        return [trial for trial in self.trials if (trial.num_full, trial.order, trial.granularity) == wanted]

    def best(self, num_full: int, order: int, granularity: str) -> Trial:
        """The trial to use."""
        return _best(self.of(num_full, order, granularity))

    def papers(self, num_full: int, order: int, granularity: str) -> Trial | None:
        """The paper's schedule, if it has that number of full steps."""
        return _papers(self.of(num_full, order, granularity))

    def plan(self, order: int | None = None, granularity: str | None = None) -> PlanFile:
        """The lists to use, with what they were found for; of the order and granularity of the best mean, unless these are given.

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
        pair = max(chosen, key=lambda pair: _mean([trial.mean_db for trial in best[pair]]))
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
        return {
            "num_full": trial.num_full,
            "mean_db": round(trial.mean_db, 2),
            "worst_db": round(trial.worst_db, 2),
            "paper_mean_db": round(paper.mean_db, 2) if paper is not None else None,
            "paper_worst_db": round(paper.worst_db, 2) if paper is not None else None,
        }


def calibrate(
    run: Run,
    backend: TaylorSeerBackend,
    num_steps: int,
    full_steps: Sequence[int] = (8, 10, 12, 16),
    orders: Sequence[int] | None = None,
    granularities: Sequence[str] | None = None,
    moves: int = 4,
    on_trial: OnTrial = lambda _: None,
) -> Calibration:
    """Find the lists of full steps that bring ``run`` nearest to its result in full.

    Args:
        run: makes samples by the compiled model, the same ones whenever it is called (fixed seeds); returns pictures, a batch of
            them, or what a pipeline returns. The more samples and the more alike to those that will be made, the better.
        backend: of the model. Its settings are as before afterwards; its streams begin anew.
        num_steps: denoising steps of a sample in ``run``.
        full_steps: numbers of full steps to find lists for, each 2 to ``num_steps``.
        orders: up to that of the backend, whose own is the default.
        granularities: "module", "stack" or both; the default is the backend's own. Another one is compiled for it.
        moves: rounds in which single full steps of the best list are moved by one; each takes up to four runs.
        on_trial: told a line of text for each run.

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
            graphs[granularity] = tuple(dict.fromkeys(map(signature_of, backend.numbers(granularity))))
            for order in orders:
                judge = _Judge(run, backend, reference, order, granularity, num_steps, on_trial)
                for num_full in sorted(set(full_steps), reverse=True):
                    trials += judge.search(num_full, recorder.gram, moves)
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
    """Compile for another granularity within, if that is not the backend's own."""
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
        raise ConfigError("run", "a function whose samples in full are finite numbers", "infinite or no numbers")
    return reference


class _Recorder:
    """The Gram matrix of all features of a run, over a part of their elements, summed over streams and samples."""

    def __init__(self, num_steps: int, num_buffers: int) -> None:
        self.num_steps, self.num_buffers, self.num_seen = num_steps, num_buffers, 0
        self.gram: Matrix = np.zeros((num_steps, num_steps))
        self._seen: dict[int, tuple[StreamState, list[torch.Tensor]]] = {}

    def __call__(self, state: StreamState, step: int) -> None:
        self.num_seen = max(self.num_seen, state.first_step + step + 1)
        if step >= self.num_steps:
            return
        _, rows = self._seen.setdefault(id(state), (state, []))
        newest = state.buffers[: len(state.buffers) // self.num_buffers]
        rows.append(torch.cat([_part(buffer) for buffer in newest]))
        products = (torch.stack(rows) @ rows[-1]).double().cpu().numpy()
        last = len(rows) - 1
        self.gram[last, : last + 1] += products
        self.gram[:last, last] += products[:last]


def _part(buffer: torch.Tensor) -> torch.Tensor:
    flat = buffer.detach().flatten()
    return flat[:: -(-len(flat) // SKETCH)].float()


class _Judge:
    """Runs lists and says how near they come; of one order and granularity."""

    def __init__(
        self,
        run: Run,
        backend: TaylorSeerBackend,
        reference: list[Sample],
        order: int,
        granularity: str,
        num_steps: int,
        on_trial: OnTrial,
    ) -> None:
        self._run, self._backend, self._reference, self._on_trial = run, backend, reference, on_trial
        self._order, self._granularity, self._num_steps = order, granularity, num_steps
        self._done: dict[tuple[int, ...], Trial] = {}

    def search(self, num_full: int, gram: Matrix, moves: int) -> list[Trial]:
        """Try both searches for ``num_full`` full steps, then move single steps of the best list."""
        candidates = [("paper", steps) for steps in papers_lists(self._num_steps, num_full)]
        candidates.append(("default", place(self._num_steps, num_full)))
        candidates += [("family", steps) for steps in family(self._num_steps, num_full)]
        candidates += [("program", steps) for steps in programmed(gram, num_full)]
        found = [self._try(*each) for each in candidates if each[1] not in self._done]
        for _ in range(moves):
            best = _best(found)
            moved = [steps for steps in neighbours(best.full_steps, self._num_steps) if steps not in self._done]
            order = np.argsort([_cost(gram, steps) for steps in moved])[:4]
            found += [self._try("moved", moved[i]) for i in order]
            if _best(found) is best:
                break
        return found

    def _try(self, source: str, steps: tuple[int, ...]) -> Trial:
        with trying(self._backend, Schedule(full_steps=steps, num_steps=self._num_steps), self._order):
            each = decibels(samples_of(self._run()), self._reference)
        trial = Trial(steps, self._order, self._granularity, source, _mean(each), min(each))
        self._done[steps] = trial
        self._on_trial(
            f"{self._granularity}, order {self._order}, {len(steps)} full, {source}: "
            f"{trial.mean_db:.1f} dB (worst {trial.worst_db:.1f}) {list(steps)}"
        )
        return trial


def papers_lists(num_steps: int, num_full: int) -> Iterator[tuple[int, ...]]:
    """The paper's schedules, by interval and warm-up, of ``num_full`` full steps; the one with the longest warm-up first."""
    found = []
    for warmup in WARMUPS:
        for interval in range(1, num_steps + 1):
            steps = tuple(Schedule(interval, warmup).full_steps_of(num_steps))
            if len(steps) == num_full:
                found.append(steps)
                break
    yield from dict.fromkeys(found)


def _cost(gram: Matrix, steps: Sequence[int]) -> float:
    """Summed squared error of lines between ``steps``."""
    total = 0.0
    for i in range(1, len(steps)):
        p, q, end = steps[i - 1], steps[i], steps[i + 1] if i + 1 < len(steps) else len(gram)
        for t in range(q + 1, end):
            new = 1 + (t - q) / (q - p)
            row = np.zeros(len(gram))
            row[[p, q, t]] = 1 - new, new, -1.0
            total += float(row @ gram @ row)
    return total


def _mean(values: Sequence[float]) -> float:
    """The mean of decibels; a sample that is equal counts as 100, so that it does not hide the others."""
    return float(np.mean([min(value, 100.0) for value in values]))


def _papers(trials: Sequence[Trial]) -> Trial | None:
    return next((trial for trial in trials if trial.source == "paper"), None)


def _best(trials: Sequence[Trial]) -> Trial:
    paper = _papers(trials)
    floor = paper.worst_db - TOLERATED if paper is not None else -math.inf
    allowed = [trial for trial in trials if trial.worst_db >= floor] or list(trials)
    return max(allowed, key=lambda trial: trial.mean_db)
