"""The caches that diffusers ships: TaylorSeer, First Block Cache and MagCache."""

import ast
import contextlib
import io
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks import HookRegistry, apply_first_block_cache, apply_mag_cache, apply_taylorseer_cache
from diffusers.hooks.hooks import CacheContext, _set_cache_context
from torch import nn

from taylorseer_fx.bench.methods.official import matching
from taylorseer_fx.bench.running import Case, Method, Runner, compile_transformer

INTERVAL, BEFORE = 5, 3  # the defaults of TaylorSeerCacheConfig
TUNED = "threshold chosen so that about as many steps are executed"


def diffusers_full_steps(num_steps: int, interval: int = INTERVAL, before: int = BEFORE) -> tuple[int, ...]:
    """The steps that ``TaylorSeerCacheConfig(cache_interval=interval, disable_cache_before_step=before)`` executes, the one
    schedule of the comparison: all others can be given it as a list.
    """
    return tuple(step for step in range(num_steps) if step < before or (step - before - 1) % interval == 0)


@dataclass(frozen=True)
class TaylorSeerCache:
    """``TaylorSeerCacheConfig`` with its defaults, with attention and MLP named, or in lite mode."""

    variant: Literal["default", "named", "lite"]
    compiled: bool
    order: int = 1
    caches = True

    @property
    def name(self) -> str:
        return f"diffusers TaylorSeer {self.variant}, {how(self.compiled)}"

    @property
    def family(self) -> str:
        return f"diffusers TaylorSeer {self.variant}"

    @property
    def counted_as(self) -> Method:
        return TaylorSeerCache(self.variant, compiled=False, order=self.order)

    @property
    def note(self) -> str:
        return (
            f"order {self.order}; "
            + {
                "default": "hooks what its patterns name attention",
                "named": "attention and MLP named by hand",
                "lite": "blocks return zeros, the last projection is forecast",
            }[self.variant]
        )

    def prepare(self, case: Case) -> Runner:
        named: dict[str, Any] = {}
        if self.variant == "named":
            features = case.workload.features
            named = {"cache_identifiers": list(features.cached), "skip_predict_identifiers": list(features.idle)}
        config = TaylorSeerCacheConfig(
            cache_interval=INTERVAL,
            disable_cache_before_step=BEFORE,
            max_order=self.order,
            use_lite_mode=self.variant == "lite",
            **named,
        )
        return _prepared(case, self.compiled, lambda transformer: apply_taylorseer_cache(transformer, config))


@dataclass(frozen=True)
class FirstBlockCache:
    """Residual of the first block within a threshold of the last full step's: the other blocks are left out.

    ``threshold`` None: the one at which about as many steps are executed as by the schedule of the others.
    """

    compiled: bool
    threshold: float | None = None
    family = "diffusers FirstBlockCache"
    caches = True

    @property
    def name(self) -> str:
        return f"diffusers FirstBlockCache{_threshold(self.threshold)}, {how(self.compiled)}"

    @property
    def counted_as(self) -> Method:
        return FirstBlockCache(compiled=False, threshold=self.threshold)

    @property
    def note(self) -> str:
        return "which steps to execute follows from the input" if self.threshold is not None else TUNED

    def prepare(self, case: Case) -> Runner:
        threshold = self.threshold if self.threshold is not None else tuned(case, self.family, self._at)
        return self._at(case, threshold, self.compiled)

    @staticmethod
    def _at(case: Case, threshold: float, compiled: bool = False) -> Runner:
        config = FirstBlockCacheConfig(threshold=threshold)
        return _prepared(case, compiled, lambda transformer: apply_first_block_cache(transformer, config))


@dataclass(frozen=True)
class MagCache:
    """Leaves all blocks out while the accumulated change of the residual's size, calibrated in a run before, is small."""

    compiled: bool
    threshold: float | None = None
    family = "diffusers MagCache"
    caches = True

    @property
    def name(self) -> str:
        return f"diffusers MagCache{_threshold(self.threshold)}, {how(self.compiled)}"

    @property
    def counted_as(self) -> Method:
        return MagCache(compiled=False, threshold=self.threshold)

    @property
    def note(self) -> str:
        return f"calibrated, at most {INTERVAL - 1} steps left out in a row, none of the first tenth; {TUNED}"

    def prepare(self, case: Case) -> Runner:
        ratios = _calibrated(case)

        def at(case: Case, threshold: float, compiled: bool = False) -> Runner:
            config = MagCacheConfig(
                threshold=threshold,
                max_skip_steps=INTERVAL - 1,
                retention_ratio=0.1,
                num_inference_steps=case.num_steps,
                mag_ratios=ratios,
            )
            return _prepared(case, compiled, lambda transformer: apply_mag_cache(transformer, config))

        threshold = self.threshold if self.threshold is not None else tuned(case, self.family, at)
        return at(case, threshold, self.compiled)


def _calibrated(case: Case) -> torch.Tensor:
    """The ratios that MagCache prints at the end of a calibration run, of the first stream."""
    if "ratios" in case.tuned:
        known: torch.Tensor = case.tuned["ratios"]
        return known
    config = MagCacheConfig(calibrate=True, num_inference_steps=case.num_steps)
    runner = _prepared(case, False, lambda transformer: apply_mag_cache(transformer, config))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runner.run(seed=1)
    line = next(line for line in printed.getvalue().splitlines() if line.startswith("[") and line.endswith("]"))
    ratios = torch.tensor(ast.literal_eval(line))
    case.tuned["ratios"] = ratios
    return ratios


def _prepared(case: Case, compiled: bool, apply: Callable[[nn.Module], None]) -> Runner:
    runner = Runner(case, case.pipeline(), case.num_steps)
    transformer = runner.pipe.transformer
    apply(transformer)
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.invalidate_child_registries_cache()
    runner.begin = registry.reset_stateful_hooks
    runner.context = lambda: _context(transformer)
    return compile_transformer(runner) if compiled else runner


@contextmanager
def _named_context(transformer: nn.Module) -> Any:
    _set_cache_context(transformer, CacheContext("cond"))
    try:
        yield
    finally:
        _set_cache_context(transformer, None)


def _context(transformer: nn.Module) -> AbstractContextManager[None]:
    """The context that these caches ask for, for pipelines that set none (DiT, SD3); others replace it by their own."""
    entered: AbstractContextManager[None] = _named_context(transformer)
    return entered


def tuned(case: Case, family: str, at: Callable[[Case, float], Runner]) -> float:
    """The threshold at which as many steps are executed as the schedule has, or as near as bisection comes."""
    if family not in case.tuned:
        case.tuned[family] = _bisected(lambda threshold: _num_executed(at(case, threshold)) - len(case.full_steps))
    threshold: float = case.tuned[family]
    return threshold


def _bisected(surplus: Callable[[float], int], attempts: int = 8) -> float:
    """Find where in 0 to 1 a surplus that falls with the threshold is nearest to 0."""
    low, high = 0.0, 1.0
    found: list[tuple[int, float]] = []
    while len(found) < attempts and (not found or found[-1][0] != 0):
        middle = (low + high) / 2
        too_many = surplus(middle)
        found.append((abs(too_many), middle))
        low, high = (middle, high) if too_many > 0 else (low, middle)
    return min(found)[1]


def _num_executed(runner: Runner) -> int:
    """Count the steps that ran the last block: calls of its last feature module."""
    *_, last = matching(runner.pipe.transformer, runner.case.workload.features.cached)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = last.register_forward_hook(count)
    try:
        runner.run()
    finally:
        handle.remove()
    return calls // runner.case.workload.calls_a_step


def how(compiled: bool) -> str:
    return "compiled" if compiled else "eager"


def _threshold(threshold: float | None) -> str:
    return "" if threshold is None else f" at {threshold:g}"
