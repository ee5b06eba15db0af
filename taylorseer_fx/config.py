"""The settings of a backend, checked where they are given."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import torch

from taylorseer_fx.compat import list_options
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.passes.steps import OPTIONAL
from taylorseer_fx.passes.storage import FLOAT8, Selection, Storage
from taylorseer_fx.plan_file import PlanFile
from taylorseer_fx.runtime.forecasters import FITS, FORECASTERS
from taylorseer_fx.runtime.placement import Placement
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.runtime.stream_limits import POLICIES, StreamLimits

NOT_IN_KEY = {"in_key": False}  # of a field that makes no difference to the code of a graph, or is in torch's own key
MAX_ORDER = 4  # the highest that the paper evaluates; the noise of a difference doubles with every order
MAX_HISTORY = 12  # snapshots; more than any of the forecasters' papers keeps
GRANULARITIES = ("module", "stack")
COMPILERS = ("inductor", "eager")
BUFFER_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, *FLOAT8)


@dataclass(frozen=True)
class BackendConfig:
    """The arguments of ``taylorseer_backend``; see there. Fields that are not marked otherwise are part of the cache's key."""

    order: int = 1
    interval: int = field(default=5, metadata=NOT_IN_KEY)
    warmup: int = field(default=3, metadata=NOT_IN_KEY)
    full_steps: tuple[int, ...] | None = field(default=None, metadata=NOT_IN_KEY)
    speedup: float | None = field(default=None, metadata=NOT_IN_KEY)
    num_steps: int | None = field(default=None, metadata=NOT_IN_KEY)
    plan: PlanFile | None = field(default=None, metadata=NOT_IN_KEY)
    plan_mismatch: str = field(default="error", metadata=NOT_IN_KEY)
    forecaster: str = field(default="taylor", metadata=NOT_IN_KEY)
    history: int | None = None
    granularity: str = "module"
    buffer_dtype: torch.dtype | None = None
    memory_budget: int | None = None
    cuda_graphs: bool | None = field(default=None, metadata=NOT_IN_KEY)
    compiler: str = "inductor"
    compiler_options: Mapping[str, Any] = field(default_factory=dict, metadata=NOT_IN_KEY)
    on_no_regions: str = "error"
    disabled_passes: tuple[str, ...] = ()
    max_streams: int | None = field(default=None, metadata=NOT_IN_KEY)
    total_memory_budget: int | None = field(default=None, metadata=NOT_IN_KEY)
    stream_policy: str = field(default="error", metadata=NOT_IN_KEY)
    stream_ttl: float | None = field(default=None, metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        self._check_schedule()
        self._check_plan()
        _check_int("order", self.order, 0, MAX_ORDER)
        _check_int("interval", self.interval, 1)
        _check_int("warmup", self.warmup, 1)
        _check_choice("granularity", self.granularity, GRANULARITIES)
        if self.memory_budget is not None:
            _check_int("memory_budget", self.memory_budget, 1)
            if self.granularity == "stack":
                hint = 'The budget chooses between "module" and "stack".'
                raise ConfigError("granularity", "left out when memory_budget is given", self.granularity, hint)
        self._check_forecaster()
        self._check_streams()
        _check_choice("compiler", self.compiler, COMPILERS)
        _check_choice("on_no_regions", self.on_no_regions, ("error", "warn"))
        if self.buffer_dtype is not None and self.buffer_dtype not in BUFFER_DTYPES:
            raise ConfigError("buffer_dtype", "None or one of " + ", ".join(map(str, BUFFER_DTYPES)), self.buffer_dtype)
        if self.cuda_graphs is not None and not isinstance(self.cuda_graphs, bool):
            raise ConfigError("cuda_graphs", "None, True or False", self.cuda_graphs)
        object.__setattr__(self, "disabled_passes", _checked_passes(self.disabled_passes))
        object.__setattr__(self, "compiler_options", dict(_checked_options(self.compiler, self.compiler_options)))

    def _check_plan(self) -> None:
        _check_choice("plan_mismatch", self.plan_mismatch, ("error", "warn"))
        if self.plan is None:
            return
        source: Any = self.plan
        if not isinstance(source, PlanFile):
            object.__setattr__(self, "plan", PlanFile.load(source))
        self._must_be_left_out(
            "plan", ("interval", "warmup", "full_steps", "num_steps", "memory_budget"), "The plan has its own lists."
        )
        defaults = {f.name: f.default for f in fields(self)}
        for name in ("order", "granularity"):
            planned, given = getattr(self.plan, name), getattr(self, name)
            if given not in (defaults[name], planned):
                raise ConfigError(name, f"{planned!r}, as in the plan, or left out", given)
            object.__setattr__(self, name, planned)
        self.plan.list_for(self.speedup)

    def _check_schedule(self) -> None:
        if self.full_steps is not None:
            object.__setattr__(self, "full_steps", _checked_full_steps(self.full_steps))
            self._must_be_left_out(
                "full_steps", ("interval", "warmup", "speedup"), "full_steps already defines the whole schedule."
            )
        if self.speedup is not None:
            _check_speedup(self.speedup)
            self._must_be_left_out("speedup", ("interval", "warmup"), "speedup places the full steps by their number.")
        if self.num_steps is not None:
            _check_int("num_steps", self.num_steps, 1)
            if self.speedup is None:
                raise ConfigError("num_steps", "left out unless speedup is given", self.num_steps, "Nothing else depends on it.")

    def _check_forecaster(self) -> None:
        _check_choice("forecaster", self.forecaster, FORECASTERS)
        if self.history is not None:
            _check_int("history", self.history, self.order + 1, MAX_HISTORY)
        if self.buffer_dtype not in FLOAT8:
            return
        if self.forecaster in FITS:
            hint = "Eight bits are for differences, and it needs snapshots."
            raise ConfigError("forecaster", f"'taylor' or 'hermite' with buffer_dtype={self.buffer_dtype}", self.forecaster, hint)
        if self.history is not None:
            raise ConfigError("history", f"left out with buffer_dtype={self.buffer_dtype}", self.history, "It counts snapshots.")

    def _check_streams(self) -> None:
        hint = "None for any number."
        if self.max_streams is not None:
            _check_int("max_streams", self.max_streams, 1, hint=hint)
        if self.total_memory_budget is not None:
            _check_int("total_memory_budget", self.total_memory_budget, 1, hint=hint)
        _check_choice("stream_policy", self.stream_policy, POLICIES)
        if self.stream_policy == "evict" and self.max_streams is None and self.total_memory_budget is None:
            hint = "Nothing is evicted without a limit."
            raise ConfigError("stream_policy", "left out unless max_streams or total_memory_budget is given", "evict", hint)
        ttl: object = self.stream_ttl
        if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0 < ttl < math.inf):
            raise ConfigError("stream_ttl", "a number of seconds above 0", ttl, "None for streams that never expire.")

    def _must_be_left_out(self, given: str, names: Iterable[str], hint: str) -> None:
        defaults = {f.name: f.default for f in fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ConfigError(name, f"left out when {given} is given", getattr(self, name), hint)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "BackendConfig":
        """Settings given by name, as ``torch.compile(..., backend="taylorseer", options={...})`` passes them."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                hint = hint_on(name, known, f"options={{'compiler_options': {{{name!r}: ...}}}}")
                raise ConfigError("option name", "one of " + ", ".join(known), name, hint)
        return cls(**options)

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        """Everything that a graph's code depends on, or that is reported while it is compiled, by name."""
        return tuple((f.name, str(getattr(self, f.name))) for f in fields(self) if f.metadata != NOT_IN_KEY)

    @property
    def selection(self) -> Selection:
        return Selection(self.granularity, self.memory_budget)

    @property
    def storage(self) -> Storage:
        return Storage(self.order, self.buffer_dtype, self.history)

    @property
    def limits(self) -> StreamLimits:
        return StreamLimits(self.max_streams, self.total_memory_budget, self.stream_policy, self.stream_ttl)

    @property
    def schedule(self) -> Schedule | Placement:
        """The schedule of a backend without a plan, or of runs that are not as planned."""
        if self.speedup is not None:
            return Placement(self.speedup, self.num_steps)
        return Schedule(self.interval, self.warmup, self.full_steps)


def hint_on(name: str, known: Sequence[str], for_inductor: str) -> str:
    """The hint on a setting that is not among ``known``: how to give an option of Inductor, or the nearest name."""
    if name in list_options():
        return f"Options of Inductor go into one of these: {for_inductor}."
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"Did you mean {close[0]!r}?" if close else ""


def _check_int(name: str, value: object, low: int, high: int | None = None, hint: str = "") -> None:
    allowed = f"an int of {low} to {high}" if high is not None else f"an int of at least {low}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise ConfigError(name, allowed, value, hint)


def _check_speedup(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value < math.inf:
        raise ConfigError("speedup", "a number of at least 1, steps over full steps", value)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(name, " or ".join(map(repr, choices)), value)


def _checked_full_steps(value: Any) -> tuple[int, ...]:
    allowed = "an increasing list of step indices that begins with 0"
    try:
        steps = tuple(value)
    except TypeError:
        raise ConfigError("full_steps", allowed, value) from None
    for step in steps:
        if isinstance(step, bool) or not isinstance(step, int):
            raise ConfigError("full_steps", allowed, value, f"{step!r} is not a step index.")
    if not steps or steps[0] != 0:
        raise ConfigError("full_steps", allowed, value, "The first step has nothing to forecast from.")
    if any(after <= before for before, after in pairwise(steps)):
        raise ConfigError("full_steps", allowed, value)
    return steps


def _checked_passes(value: Any) -> tuple[str, ...]:
    allowed = "a list of " + ", ".join(map(repr, OPTIONAL))
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError("disabled_passes", allowed, value)
    names = tuple(value)
    for name in names:
        if name not in OPTIONAL:
            raise ConfigError("disabled_passes", allowed, value, f"{name!r} is not an optional pass.")
    return tuple(name for name in OPTIONAL if name in names)


def _checked_options(compiler: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError("compiler_options", "a mapping from Inductor's option names to values", value)
    if value and compiler != "inductor":
        raise ConfigError("compiler_options", f"empty with compiler={compiler!r}", dict(value))
    known = list_options() if value else []
    for name in value:
        if name not in known:
            raise ConfigError("compiler_options", "options of torch._inductor.list_options()", name)
    if value.get("triton.cudagraphs"):
        hint = "Use cuda_graphs: Inductor's own would record anew whenever the buffers take turns."
        raise ConfigError("compiler_options['triton.cudagraphs']", "left off", True, hint)
    return value
