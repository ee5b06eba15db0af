"""Place the full steps when only their number is given: close together at first, then ever wider apart.

paper       F F F T T T T T F T T T T T F T T T T T F ...          10 of 50, the paper's
placed      F T T T F T T T T F T T T T F T T T T F ...            10 of 50, ``speedup=5``
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil

from taylorseer_fx.errors import ConfigError
from taylorseer_fx.runtime.schedule import Schedule

LEADING = 1  # steps in full before the gaps begin to grow
GROWTH = 0.1  # how fast they do, where there is room for it: the exponent of the default is up to 1 + GROWTH
MARGIN = 0.35  # of a gap: how far behind the last full step the run would have the next one


@dataclass(frozen=True)
class Placement:
    """A schedule for each length of a run, with ``ceil(num_steps / speedup)`` full steps.

    ``num_steps``: the length of a run for which nothing else gives it.
    """

    speedup: float
    num_steps: int | None = None

    def for_run(self, num_steps: int | None, first_step: int = 0) -> Schedule:
        """The schedule for the steps of a run of ``num_steps`` from ``first_step`` on.

        Raises:
            ConfigError: the number of steps is not known.
        """
        length = num_steps if num_steps is not None else self.num_steps
        if length is None:
            raise ConfigError("num_steps", "an int of at least 1 when speedup is given", None, _UNKNOWN)
        left = max(length - first_step, 1)
        return Schedule(full_steps=place(left, self.num_full(left)), num_steps=left)

    def num_full(self, num_steps: int) -> int:
        """The number of full steps in a run of ``num_steps`` steps."""
        return max(1, ceil(num_steps / self.speedup - 1e-9))


@dataclass(frozen=True)
class Listed:
    """A list found for runs of ``num_steps`` steps; ``otherwise`` gives the schedule of a run of another length, or raises."""

    full_steps: tuple[int, ...]
    num_steps: int
    otherwise: Callable[[int], Schedule | Placement]

    def for_run(self, num_steps: int | None, first_step: int = 0) -> Schedule:
        """The schedule for the steps of a run from ``first_step`` on; for a run of unknown length, that of the list."""
        if num_steps is not None and num_steps != self.num_steps:
            return self.otherwise(num_steps).for_run(num_steps, first_step)
        first_step = min(first_step, self.num_steps - 1)
        later = (step - first_step for step in self.full_steps if step > first_step)
        return Schedule(full_steps=(0, *later), num_steps=self.num_steps - first_step)


def place(
    num_steps: int, num_full: int, leading: int = LEADING, exponent: float | None = None, margin: float = MARGIN
) -> tuple[int, ...]:
    """``num_full`` increasing steps of a run of ``num_steps``: the first ``leading``, then in gaps that grow.

    Args:
        num_steps: length of the run, at least 1.
        num_full: 1 to ``num_steps``.
        leading: full steps at the beginning.
        exponent: at least 1; step ``i`` of the ``n`` others stands at ``((i + 1) / (n + margin)) ** exponent`` of the rest. None
            grows from 1, for a mean gap of two steps, to 1.1 for one of three; below two, gaps of one step come first.
        margin: above 0, and then the last step is not a full one.
    """
    is_dense = exponent is None and num_steps < 2 * num_full
    if exponent is None:
        exponent = 1 + GROWTH * min(max(num_steps / num_full - 2, 0.0), 1.0)
    leading = min(leading, num_full)
    others = num_full - leading
    rest = num_steps - leading
    ideal = [leading - 1 + rest * ((i + 1) / (others + margin)) ** exponent for i in range(others)]
    steps = list(range(leading))
    for i, where in enumerate(ideal):  # each one behind the last, and with room for those that follow
        steps.append(min(max(round(where), steps[-1] + 1), num_steps - others + i))
    gaps = [after - before for before, after in pairwise(steps)]
    return tuple(accumulate(sorted(gaps) if is_dense else gaps, initial=0))


AnySchedule = Schedule | Placement | Listed

_UNKNOWN = (
    "The place of the full steps depends on the length of the run. Attach the pipeline, `backend.attach(pipe)`, which reports it "
    "at the beginning of each run, or give it: `taylorseer_backend(speedup=..., num_steps=50)`."
)
