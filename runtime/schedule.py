"""Which steps execute and which forecast: a pure function of the step index."""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Schedule:
    """Full at steps ``0 .. warmup-1``, then every ``interval`` steps after ``warmup - 1``; or at exactly ``full_steps``.

    For 50 steps, interval 5 and warm-up 3: full at 0, 1, 2, 7, 12, ..., 47 (METHOD of TaylorSeer's official FLUX code). A run
    longer than an explicit list forecasts to its end.
    """

    interval: int = 5
    warmup: int = 3
    full_steps: tuple[int, ...] | None = None

    @cached_property
    def _full(self) -> frozenset[int]:
        return frozenset(self.full_steps or ())

    @cached_property
    def warmup_steps(self) -> int:
        """Length of the leading run of full steps: what the start-up rule of the derivatives counts from."""
        if self.full_steps is None:
            return self.warmup
        return next((i for i, step in enumerate(self.full_steps) if step != i), len(self.full_steps))

    def is_full(self, step: int) -> bool:
        if self.full_steps is not None:
            return step in self._full
        return step < self.warmup or (step - self.warmup + 1) % self.interval == 0

    def full_steps_of(self, num_steps: int) -> list[int]:
        """The full steps of a run of ``num_steps`` steps."""
        return [step for step in range(num_steps) if self.is_full(step)]

    def describe(self, num_steps: int) -> str:
        """``FFFTTTTF...``: F executes, T is a Taylor forecast."""
        return "".join("F" if self.is_full(step) else "T" for step in range(num_steps))
