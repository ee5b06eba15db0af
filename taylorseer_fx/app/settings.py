"""What is chosen on the page: how to forecast, and what to generate; checked before anything runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taylorseer_fx.config import BackendConfig
from taylorseer_fx.demo.runs import Generation
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.shipped import SHIPPED

ROWS = 2  # as in the recorded comparison, so that bytes and decibels can be compared with it
MAX_STEPS = 200
MAX_GUIDANCE = 10.0


@dataclass(frozen=True)
class Setting:
    """One way to forecast. ``schedule``: the arguments of ``taylorseer_backend`` that place the full steps."""

    order: int = 1
    granularity: str = "module"
    schedule: Mapping[str, Any] = field(default_factory=lambda: {"speedup": 5.0})

    def arguments(self, num_steps: int) -> dict[str, Any]:
        """Those of ``taylorseer_backend``, for runs of ``num_steps`` steps."""
        length = {"num_steps": num_steps} if "speedup" in self.schedule else {}
        return {"order": self.order, "granularity": self.granularity, **self.schedule, **length}

    def schedule_of(self, num_steps: int) -> Schedule:
        """Raises:
        ConfigError: an argument is out of its range.
        """
        return BackendConfig(**self.arguments(num_steps)).schedule.for_run(num_steps)

    def notes(self, num_steps: int) -> list[str]:
        """What is worth knowing of this schedule in a run of ``num_steps`` steps: the backend's own warnings, and more."""
        schedule = self.schedule_of(num_steps)
        beyond = next((step for step in range(num_steps) if schedule.is_beyond(step)), None)
        notes = [schedule.beyond_text(beyond)] if beyond is not None else []
        if schedule.full_steps is not None and schedule.full_steps[-1] >= num_steps:
            never = ", ".join(str(step) for step in schedule.full_steps if step >= num_steps)
            notes.append(f"the run of {num_steps} steps ends before the full steps {never} of the list.")
        return [*notes, *filter(None, [schedule.all_full_text(num_steps)])]

    def code(self, num_steps: int) -> str:
        """The call that makes this backend in a program."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments(num_steps).items())
        return f"taylorseer_backend({given})"


def step_list(text: str | None) -> tuple[int, ...]:
    """``"0, 1, 4, 8"`` as numbers.

    Raises:
        ConfigError: something else stands between the commas.
    """
    parts = [part.strip() for part in (text or "").replace(";", ",").replace(" ", ",").split(",")]
    try:
        return tuple(int(part) for part in parts if part)
    except ValueError:
        raise ConfigError("full_steps", "step indices with commas between them, such as 0, 1, 4, 8", text) from None


def generation(model: str, num_steps: int, guidance: float, seed: int) -> Generation:
    """``ROWS`` pictures of each class.

    Raises:
        ConfigError: an argument is out of its range.
    """
    if model not in SHIPPED:
        raise ConfigError("model", " or ".join(map(repr, SHIPPED)), model)
    _check_number("num_steps", num_steps, 2, MAX_STEPS, whole=True)
    _check_number("guidance", guidance, 1, MAX_GUIDANCE)
    _check_number("seed", seed, 0, 2**31 - 1, whole=True)
    return Generation(SHIPPED[model], num_steps, ROWS, float(guidance), seed)


def _check_number(name: str, value: object, low: float, high: float, whole: bool = False) -> None:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value) or not low <= value <= high:
        raise ConfigError(name, f"{'an int' if whole else 'a number'} of {low:g} to {high:g}", value)
