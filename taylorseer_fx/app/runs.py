"""The computation behind the page: the same pictures without forecasting and by each setting, a step of each in turn."""

import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from string import ascii_uppercase
from typing import Any

import torch
from torch import nn

from taylorseer_fx.app.settings import Setting
from taylorseer_fx.backend import TaylorSeerBackend
from taylorseer_fx.compat import dynamo_config
from taylorseer_fx.config import COMPILERS, BackendConfig
from taylorseer_fx.demo.quality import psnr
from taylorseer_fx.demo.runs import Contestant, Generation, Run, generate_in_turns, warm_up
from taylorseer_fx.errors import ConfigError, TaylorSeerWarning
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.shipped import Shipped
from taylorseer_fx.trials import trying

NAMES = ascii_uppercase  # of the settings that are compared
MAX_COMPILATIONS = 100  # of one model's code; the page can ask for fewer
ONE_OF_EACH = Schedule(full_steps=(0,), num_steps=2)  # a full step, and a forecast step

Progress = Callable[[float, str], object]  # the fraction that is done, and what is done now


@dataclass(frozen=True)
class Forecast:
    """The run by one setting. ``psnr_db`` is against the full run, ``speedup`` the seconds of that over the seconds of this."""

    name: str
    setting: Setting
    run: Run
    psnr_db: float
    speedup: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What one press of the button gives. ``full``: every step executed, by the same compiler and without our backend."""

    generation: Generation
    compiler: str
    full: Run
    forecasts: tuple[Forecast, ...]


@dataclass(frozen=True)
class Purpose:
    """What a denoiser is compiled for. ``order`` None: without our backend. ``twin``: how many like it come before it in one
    comparison, since a backend has one schedule at a time.
    """

    model: Shipped
    compiler: str
    order: int | None = None
    granularity: str = ""
    twin: int = 0

    @property
    def is_plain(self) -> bool:
        """The model as it is."""
        return self.order is None and self.compiler == "eager"

    def describe(self) -> str:
        how = f"order {self.order}, {self.granularity}" if self.order is not None else "no forecasting"
        return f"compiling {self.model.name}, {how}"


@dataclass
class Kept:
    """A compiled denoiser, the batches that it was compiled for, and what its backend warned of meanwhile."""

    contestant: Contestant
    batches: set[tuple[int, bool]] = field(default_factory=set)
    warned: list[str] = field(default_factory=list)


class Workbench:
    """Compares settings, and keeps what it compiled. One comparison at a time: those of other threads wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[Shipped, nn.Module] = {}
        self._kept: dict[Purpose, Kept] = {}

    def compare(
        self, what: Generation, settings: Sequence[Setting], compiler: str, on_progress: Progress = lambda *_: None
    ) -> Comparison:
        """Generate ``what`` without forecasting, and by each of ``settings``.

        Raises:
            ConfigError: a setting is out of its range; nothing was compiled, and nothing was run.
        """
        if compiler not in COMPILERS:
            raise ConfigError("compiler", " or ".join(map(repr, COMPILERS)), compiler)
        schedules = [setting.schedule_of(what.num_steps) for setting in settings]
        notes = [setting.notes(what.num_steps) for setting in settings]
        with self._lock, dynamo_config.patch(recompile_limit=MAX_COMPILATIONS):
            kept = self._compiled(_purposes(what.model, settings, compiler), what, on_progress)
            full, *runs = _run_in_turns([each.contestant for each in kept], schedules, what, on_progress)
        return Comparison(
            what,
            compiler,
            full,
            tuple(
                Forecast(name, setting, run, psnr(run.samples, full.samples), full.seconds / run.seconds, (*said, *each.warned))
                for name, setting, run, said, each in zip(NAMES, settings, runs, notes, kept[1:], strict=False)
            ),
        )

    def backends(self) -> list[TaylorSeerBackend]:
        """Those that are kept, in the order in which they were made."""
        return [kept.contestant.backend for kept in self._kept.values() if kept.contestant.backend is not None]

    def _compiled(self, purposes: Sequence[Purpose], what: Generation, on_progress: Progress) -> list[Kept]:
        """A denoiser for each purpose, compiled for the batch at hand."""
        batch = what.rows, what.guidance != 1
        ready = []
        for i, purpose in enumerate(purposes):
            if purpose not in self._kept:
                self._kept[purpose] = Kept(self._contestant(purpose))
            kept = self._kept[purpose]
            if batch not in kept.batches:
                on_progress(i / len(purposes), purpose.describe())
                _compile(kept, what)
                if purpose.is_plain:
                    kept.contestant.compile_seconds = 0.0
                kept.batches.add(batch)
            ready.append(kept)
        return ready

    def _contestant(self, purpose: Purpose) -> Contestant:
        if purpose.model not in self._models:
            self._models[purpose.model] = purpose.model.load()
        model: Any = self._models[purpose.model]
        if purpose.order is not None:
            backend = TaylorSeerBackend(BackendConfig(purpose.order, granularity=purpose.granularity, compiler=purpose.compiler))
            return Contestant("forecast", torch.compile(model, backend=backend, dynamic=False), backend)
        return Contestant("full", model if purpose.is_plain else torch.compile(model, dynamic=False))


def _purposes(model: Shipped, settings: Sequence[Setting], compiler: str) -> list[Purpose]:
    """First that of the full run, then of each setting."""
    alike = [Purpose(model, compiler, setting.order, setting.granularity) for setting in settings]
    return [Purpose(model, compiler), *(replace(purpose, twin=alike[:i].count(purpose)) for i, purpose in enumerate(alike))]


def _compile(kept: Kept, what: Generation) -> None:
    """A step of each kind is called, for the compilation and for whatever else a first call does. Backends warn once, so what
    is warned of is kept.
    """
    with ExitStack() as stack:
        said = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always", TaylorSeerWarning)
        if kept.contestant.backend is not None:
            stack.enter_context(trying(kept.contestant.backend, ONE_OF_EACH))
        warm_up(kept.contestant, what)
    ours = [str(each.message).removeprefix("taylorseer_fx: ") for each in said if issubclass(each.category, TaylorSeerWarning)]
    kept.warned += ours


def _run_in_turns(
    contestants: Sequence[Contestant], schedules: Sequence[Schedule], what: Generation, on_progress: Progress
) -> list[Run]:
    """The full run and one by each schedule; what the schedules warn of is among ``Setting.notes``, and not said twice."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        on_progress(done / what.num_steps, f"denoising, step {done} of {what.num_steps} of each run")

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", TaylorSeerWarning)
        for contestant, schedule in zip(contestants[1:], schedules, strict=True):
            assert contestant.backend is not None
            stack.enter_context(trying(contestant.backend, schedule))
        for contestant in contestants:
            contestant.forget()
        return generate_in_turns(contestants, what, count)
