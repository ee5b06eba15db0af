"""Interleaved timing: A B A B ..., step by step, so that a slow spell of the machine falls on both."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PairedSteps:
    """Seconds of every step of a run of ours, and of the same step compiled plainly right before it."""

    plain: tuple[float, ...]
    ours: tuple[float, ...]
    is_full: tuple[bool, ...]

    @property
    def full_over_plain(self) -> float:
        """Median over the full steps."""
        return statistics.median(self._ratios(full=True))

    @property
    def forecast_over_full(self) -> float:
        """Median over the forecast steps, against the plain step beside each, times what a full step costs over a plain one."""
        return statistics.median(self._ratios(full=False)) / self.full_over_plain

    @property
    def speedup(self) -> float:
        """The speed-up of the whole run over plain."""
        return sum(self.plain) / sum(self.ours)

    @property
    def ceiling(self) -> float:
        """Steps over full steps."""
        return len(self.is_full) / sum(self.is_full)

    def _ratios(self, full: bool) -> list[float]:
        rows = zip(self.plain, self.ours, self.is_full, strict=True)
        return [ours / plain for plain, ours, is_full in rows if is_full is full]


def paired_steps(plain: Callable[[int], object], ours: Callable[[int], object], is_full: list[bool], rounds: int) -> PairedSteps:
    """Run both step by step, alternately, ``rounds`` times the whole run."""
    taken = [interleaved_steps({"plain": plain, "ours": ours}, len(is_full)) for _ in range(rounds)]
    plain_seconds, ours_seconds = (tuple(second for seconds in taken for second in seconds[name]) for name in ("plain", "ours"))
    return PairedSteps(plain_seconds, ours_seconds, tuple(is_full) * rounds)


def interleaved_steps(runs: Mapping[str, Callable[[int], object]], num_steps: int) -> dict[str, list[float]]:
    """Seconds of every step of each of ``runs``, which take turns at each step."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for step in range(num_steps):
        for name, run in runs.items():
            started = time.perf_counter()
            run(step)
            seconds[name].append(time.perf_counter() - started)
    return seconds
