"""SeaCache, which diffusers ships since 0.42: all blocks are left out while a filtered image of the noisy sample changes little.

It reads the sample and its noise level, and needs to be told the step: a pipeline that does not do so runs every step in full.
None of the pipelines here does, so it is told in their place, where the workload says how (flow matching).
"""

import inspect
from dataclasses import dataclass
from typing import Any

from diffusers import SeaCacheConfig
from diffusers.hooks import HookRegistry
from diffusers.hooks.hooks import CacheContext, _set_cache_context
from torch import Tensor, nn

from taylorseer_fx.bench.methods.diffusers_caches import INTERVAL, TUNED, how, tuned
from taylorseer_fx.bench.running import Case, Method, Runner, compile_transformer


class NoNoiseLevelError(Exception):
    """A workload whose noise level SeaCache's filter is not made for."""


@dataclass(frozen=True)
class SeaCache:
    """Its defaults, but for the threshold, at which about as many steps are executed as by the schedule of the others."""

    compiled: bool
    family = "diffusers SeaCache"
    caches = True
    note = f"extrapolates the residual; told step and noise level; at most {INTERVAL - 1} steps left out in a row; {TUNED}"

    @property
    def name(self) -> str:
        return f"diffusers SeaCache, {how(self.compiled)}"

    @property
    def counted_as(self) -> Method:
        return SeaCache(compiled=False)

    def prepare(self, case: Case) -> Runner:
        if case.workload.vision is None:
            raise NoNoiseLevelError("made for flow matching, whose noise level is its time; not for this workload")
        return self._at(case, tuned(case, self.family, self._at), self.compiled)

    @staticmethod
    def _at(case: Case, threshold: float, compiled: bool = False) -> Runner:
        runner = Runner(case, case.pipeline(), case.num_steps)
        transformer: Any = runner.pipe.transformer
        told = _Told(case, transformer)
        config = SeaCacheConfig(threshold=threshold, max_consecutive_cached=INTERVAL - 1, raw_vision_callback=told.vision)
        transformer.enable_cache(config)
        registry = HookRegistry.check_if_exists_or_initialize(transformer)

        def begin() -> None:
            registry.reset_stateful_hooks()
            told.step = 0

        runner.begin = begin
        told.attach(transformer)
        return compile_transformer(runner) if compiled else runner


class _Told:
    """Sets the context of each call, in the pipeline's place."""

    def __init__(self, case: Case, transformer: nn.Module) -> None:
        self._case, self._signature, self.step = case, inspect.signature(type(transformer).forward), 0

    def attach(self, transformer: nn.Module) -> None:
        transformer.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _, sigma = self._read(module, args, kwargs)
        context = CacheContext("cond", step_index=self.step, sigma=sigma, num_inference_steps=self._case.num_steps)
        _set_cache_context(module, context)
        self.step += 1

    def vision(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        return self._read(module, args, kwargs)[0]

    def _read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], float]:
        assert self._case.workload.vision is not None
        return self._case.workload.vision(self._signature.bind_partial(module, *args, **kwargs).arguments)
