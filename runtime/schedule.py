"""Decide which steps execute and which forecast, as a pure function of the step index."""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Schedule:
    """The full steps: ``0 .. warmup-1``, then every ``interval`` steps after ``warmup - 1``; or exactly ``full_steps``.

    For 50 steps, interval 5 and warm-up 3: full at 0, 1, 2, 7, 12, ..., 47 (METHOD of TaylorSeer's official FLUX code).

    A run longer than an explicit list goes on with the list's last gap: ``[0, 1, 4, 8]`` is full at 12, 16, ... too. A list of
    one step has no gap, so all steps that follow are full. ``num_steps``: the length of the run that
    the list was made for, which may end long after the list does; None where that is not known.
    """

    interval: int = 5
    warmup: int = 3
    full_steps: tuple[int, ...] | None = None
    num_steps: int | None = None

    def for_run(self, num_steps: int | None, first_step: int = 0) -> "Schedule":  # noqa: ARG002
        """Return this schedule, which is the same for a run of any length."""
        return self

    @cached_property
    def _full(self) -> frozenset[int]:
        return frozenset(self.full_steps or ())

    @cached_property
    def warmup_steps(self) -> int:
        """The length of the leading run of full steps, which the start-up rule of the derivatives counts from."""
        if self.full_steps is None:
            return self.warmup
        return next((i for i, step in enumerate(self.full_steps) if step != i), len(self.full_steps))

    @cached_property
    def _last_gap(self) -> int:
        return self.full_steps[-1] - self.full_steps[-2] if self.full_steps is not None and len(self.full_steps) > 1 else 1

    def is_beyond(self, step: int) -> bool:
        """Is ``step`` so far behind the end of an explicit list that the list cannot be meant for a run of that length?"""
        if self.num_steps is not None:
            return step >= self.num_steps
        return self.full_steps is not None and step >= self.full_steps[-1] + self._last_gap

    def is_full(self, step: int) -> bool:
        if self.is_beyond(step):
            assert self.full_steps is not None
            return (step - self.full_steps[-1]) % self._last_gap == 0
        if self.full_steps is not None:
            return step in self._full
        return step < self.warmup or (step - self.warmup + 1) % self.interval == 0

    def is_due(self, step: int, last: int) -> bool:
        """Is ``step`` full, or was one since ``last``, the step before it that was called? A stream may miss some."""
        return self.is_full(step) or any(map(self.is_full, range(last + 1, step)))

    def beyond_text(self, step: int) -> str:
        """The warning for a run that reaches ``step``, beyond the list."""
        assert self.full_steps is not None
        rate = "every step" if self._last_gap == 1 else f"one step in {self._last_gap}"
        if self.num_steps is not None:
            return (
                f"the run came to step {step}, but the full steps were placed for {self.num_steps} steps. From here on {rate} is "
                "executed. Give num_steps for the length of this run, or attach the pipeline, which reports it."
            )
        return (
            f"the run came to step {step}, but full_steps ends at {self.full_steps[-1]}: it seems to be meant for a shorter run. "
            f"From here on {rate} is executed, which is the list's last gap. Give full_steps for the length of this run, or "
            "interval and warmup, which suit any length."
        )

    def all_full_text(self, num_steps: int) -> str:
        """The warning for a run of ``num_steps`` steps in which nothing is forecast though that was wanted; else ""."""
        all_full = len(self.full_steps_of(num_steps)) == num_steps
        if num_steps < 2 or not all_full or (self.full_steps is None and self.interval == 1) or self.num_steps is not None:
            return ""
        cause = f"the warm-up takes {self.warmup}" if self.full_steps is None else "full_steps names them all"
        return (
            f"a run of {num_steps} steps forecasts nothing: {cause}, so that every step is executed. For a model of few steps "
            f"give a smaller warmup, or the steps to execute: full_steps=[0, ...] with some of 1 to {num_steps - 1} left out."
        )

    def full_steps_of(self, num_steps: int) -> list[int]:
        """The full steps of a run of ``num_steps`` steps."""
        return [step for step in range(num_steps) if self.is_full(step)]

    def describe(self, num_steps: int) -> str:
        """``FFFTTTTF...``: F executes, T is a Taylor forecast."""
        return "".join("F" if self.is_full(step) else "T" for step in range(num_steps))
