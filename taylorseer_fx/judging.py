"""Run lists of full steps, and judge them by their samples: mean and worst against the samples of the run in full."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from taylorseer_fx.backend import TaylorSeerBackend
from taylorseer_fx.runtime.placement import place
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.samples import Sample, decibels, samples_of
from taylorseer_fx.search import Matrix, family, neighbours, programmed
from taylorseer_fx.trials import trying

WARMUPS = (3, 2, 1)  # of the paper's schedules: for FLUX, DiT and HunyuanVideo
TOLERATED = 1.0  # dB that the worst sample may be below the paper's worst

Run = Callable[[], Any]
OnTrial = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """A list of full steps that was run: decibels against the run in full, mean over samples and worst sample.

    ``held_out``: the same two of samples that it was not chosen by; None where there were none, or the list was not chosen.
    """

    full_steps: tuple[int, ...]
    order: int
    granularity: str
    source: str
    mean_db: float
    worst_db: float
    held_out: tuple[float, float] | None = None

    @property
    def num_full(self) -> int:
        return len(self.full_steps)


class Judge:
    """A judge of lists for one order and granularity: runs them, and measures how near the run in full they come."""

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
            best = best_of(found)
            moved = [steps for steps in neighbours(best.full_steps, self._num_steps) if steps not in self._done]
            order = np.argsort([_cost(gram, steps) for steps in moved])[:4]
            found += [self._try("moved", moved[i]) for i in order]
            if best_of(found) is best:
                break
        return found

    def of(self, steps: tuple[int, ...]) -> tuple[float, float]:
        """Run with these full steps; returns decibels, mean over samples and worst sample."""
        with trying(self._backend, Schedule(full_steps=steps, num_steps=self._num_steps), self._order):
            each = decibels(samples_of(self._run()), self._reference)
        return mean_of(each), min(each)

    def _try(self, source: str, steps: tuple[int, ...]) -> Trial:
        mean, worst = self.of(steps)
        trial = Trial(steps, self._order, self._granularity, source, mean, worst)
        self._done[steps] = trial
        self._on_trial(
            f"{self._granularity}, order {self._order}, {len(steps)} full, {source}: "
            f"{trial.mean_db:.1f} dB (worst {trial.worst_db:.1f}) {list(steps)}"
        )
        return trial


def on_held_out(trials: Sequence[Trial], judge: Judge) -> list[Trial]:
    """Judge the best of ``trials`` and the paper's schedule by samples that none was chosen by, too."""
    wanted = (best_of(trials), papers_of(trials))
    return [replace(trial, held_out=judge.of(trial.full_steps)) if trial in wanted else trial for trial in trials]


def papers_lists(num_steps: int, num_full: int) -> Iterator[tuple[int, ...]]:
    """The paper's schedules, by interval and warm-up, of ``num_full`` full steps; the one with the longest warm-up first."""
    found = (papers_list(num_steps, num_full, warmup) for warmup in WARMUPS)
    yield from dict.fromkeys(steps for steps in found if steps is not None)


def papers_list(num_steps: int, num_full: int, warmup: int) -> tuple[int, ...] | None:
    """The paper's schedule of that warm-up and exactly ``num_full`` full steps; None if there is none."""
    lists = (tuple(Schedule(interval, warmup).full_steps_of(num_steps)) for interval in range(1, num_steps + 1))
    return next((steps for steps in lists if len(steps) == num_full), None)


def _cost(gram: Matrix, steps: Sequence[int]) -> float:
    """The summed squared error of lines between ``steps``."""
    total = 0.0
    for i in range(1, len(steps)):
        p, q, end = steps[i - 1], steps[i], steps[i + 1] if i + 1 < len(steps) else len(gram)
        for t in range(q + 1, end):
            new = 1 + (t - q) / (q - p)
            row = np.zeros(len(gram))
            row[[p, q, t]] = 1 - new, new, -1.0
            total += float(row @ gram @ row)
    return total


def mean_of(values: Sequence[float]) -> float:
    """The mean of decibels; a sample that is equal counts as 100, so that it does not hide the others."""
    return float(np.mean([min(value, 100.0) for value in values]))


def papers_of(trials: Sequence[Trial]) -> Trial | None:
    return next((trial for trial in trials if trial.source == "paper"), None)


def best_of(trials: Sequence[Trial]) -> Trial:
    paper = papers_of(trials)
    floor = paper.worst_db - TOLERATED if paper is not None else -math.inf
    allowed = [trial for trial in trials if trial.worst_db >= floor] or list(trials)
    return max(allowed, key=lambda trial: trial.mean_db)
