"""``plan``: what forecasting would save on a model and what it would cost, without running it. Works on the meta device.

Tracing a full-size model takes most of the time, so ``plan_each`` counts any number of settings on one trace.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from taylorseer_fx.compat import dynamo_config, function_modes, without_function_mode
from taylorseer_fx.compile import CompileGraph, trace_and_compile
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.errors import ConfigError, NoRegionsError, TaylorSeerWarning
from taylorseer_fx.explain import CompiledGraph, Report, describe_graph
from taylorseer_fx.messages import nothing_to_forecast
from taylorseer_fx.numbers import FeatureInfo, RegionInfo, count
from taylorseer_fx.passes.emit import outputs
from taylorseer_fx.passes.pipeline import run_passes
from taylorseer_fx.passes.plain_graph import PlainGraph
from taylorseer_fx.passes.regions import RegionSet
from taylorseer_fx.passes.residual_ops import registered_names
from taylorseer_fx.remade import KeptPasses
from taylorseer_fx.runtime.boxed import BoxedCallable
from taylorseer_fx.text import format_bytes, format_flops


@dataclass(frozen=True)
class Plan:
    """The costs of a run of ``num_steps`` steps. FLOPs are per step: matrix products and attention, 2 per multiply-add.

    ``notes``: what is odd about the settings for such a run (nothing is forecast, the list of full steps is for a shorter one,
    modules are over the memory budget).
    """

    num_steps: int
    order: int
    full_steps: tuple[int, ...]
    flops_full: int
    flops_forecast: int
    buffer_bytes: int
    regions: tuple[RegionInfo, ...]
    reports: tuple[Report, ...]
    notes: tuple[str, ...] = ()

    @property
    def granularity(self) -> str:
        """The granularity counted: "module", or "stack", also where modules are over the memory budget."""
        return self.reports[0].granularity

    @property
    def features(self) -> tuple[FeatureInfo, ...]:
        return tuple(feature for region in self.regions for feature in region.features)

    @property
    def flops_total(self) -> int:
        """The FLOPs of the whole run."""
        num_full = len(self.full_steps)
        return num_full * self.flops_full + (self.num_steps - num_full) * self.flops_forecast

    @property
    def speedup_ceiling(self) -> float:
        """The FLOPs of the run with every step full, over its FLOPs with forecasting."""
        return self.num_steps * self.flops_full / self.flops_total

    def __str__(self) -> str:
        return "\n".join(
            [
                f"full steps:    {len(self.full_steps)} of {self.num_steps}: {', '.join(map(str, self.full_steps))}",
                f"full step:     {format_flops(self.flops_full)}",
                f"forecast step: {format_flops(self.flops_forecast)} ({self.flops_forecast / self.flops_full:.2%})",
                f"the run:       {format_flops(self.flops_total)} instead of "
                f"{format_flops(self.num_steps * self.flops_full)} ({self.speedup_ceiling:.2f}x)",
                f"buffers:       {format_bytes(self.buffer_bytes)} per stream, {len(self.features)} features, order {self.order}",
                *(f"note:          {note}" for note in self.notes),
            ]
        )


def plan(
    model: nn.Module,
    inputs: Mapping[str, Any] | Sequence[Any],
    num_steps: int = 50,
    order: int = 1,
    interval: int = 5,
    warmup: int = 3,
    granularity: str = "module",
    buffer_dtype: torch.dtype | None = None,
    *,
    full_steps: Iterable[int] | None = None,
    speedup: float | None = None,
    history: int | None = None,
    memory_budget: int | None = None,
) -> Plan:
    """Trace ``model`` on ``inputs`` and count; nothing is executed, and with both on the meta device nothing is allocated.

    Args:
        model: any Diffusion Transformer.
        inputs: its keyword arguments, or a sequence of positional ones.
        num_steps: length of the run, at least 1.
        order, interval, warmup, granularity, buffer_dtype, full_steps, speedup, history, memory_budget: as for
            ``taylorseer_backend``.
            For a model whose modules need more than the budget, the stack is counted; the plan's ``granularity`` shows it.

    Raises:
        ConfigError: an argument is wrong.
        NoRegionsError: the model holds no attention or MLP to forecast.
        torch._dynamo.exc.Unsupported: the model breaks the graph, so that it cannot be counted as a whole; the text says where.
    """
    steps: Any = full_steps
    config = BackendConfig(
        order=order,
        interval=interval,
        warmup=warmup,
        full_steps=steps,
        speedup=speedup,
        history=history,
        granularity=granularity,
        buffer_dtype=buffer_dtype,
        memory_budget=memory_budget,
    )
    (only,) = plan_each(model, inputs, [config], num_steps)
    return only


def plan_each(
    model: nn.Module, inputs: Mapping[str, Any] | Sequence[Any], configs: Sequence[BackendConfig], num_steps: int = 50
) -> list[Plan]:
    """Plan for each of ``configs`` on one trace of the model.

    Raises:
        What ``plan`` raises.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ConfigError("num_steps", "an int of at least 1", num_steps)
    recorder = _Recorder(configs)
    compiled = torch.compile(model, backend=recorder, fullgraph=True, dynamic=False)
    with torch.no_grad(), _planning():
        compiled(**inputs) if isinstance(inputs, Mapping) else compiled(*inputs)
    if not any(recorder.reports):
        why = nothing_to_forecast(recorder.empty[0]) if recorder.empty else "it computes nothing"
        raise NoRegionsError(f"nothing to forecast in {type(model).__name__}: {why}")
    return [_plan(config, reports, num_steps) for config, reports in zip(configs, recorder.reports, strict=True)]


def _plan(config: BackendConfig, reports: Sequence[Report], num_steps: int) -> Plan:
    return Plan(
        num_steps=num_steps,
        order=config.order,
        full_steps=tuple(config.schedule.for_run(num_steps).full_steps_of(num_steps)),
        flops_full=sum(report.flops["full"] for report in reports),
        flops_forecast=sum(report.flops["forecast"] for report in reports),
        buffer_bytes=sum(report.buffer_bytes for report in reports),
        regions=tuple(region for report in reports for region in report.regions),
        reports=tuple(reports),
        notes=tuple(note for note in _notes(config, reports, num_steps) if note),
    )


def _notes(config: BackendConfig, reports: Sequence[Report], num_steps: int) -> Iterator[str]:
    schedule, last = config.schedule.for_run(num_steps), num_steps - 1
    yield schedule.all_full_text(num_steps)
    yield schedule.beyond_text(last) if schedule.is_beyond(last) else ""
    if config.memory_budget is not None and reports[0].granularity != config.granularity:
        yield f'modules are over the budget of {format_bytes(config.memory_budget)} per stream: granularity "stack" instead'


@contextmanager
def _planning() -> Iterator[None]:
    """Trace as if outside of ``with torch.device(...)``, which breaks graphs, and however often the model was planned before."""
    no_limit = 2**30
    with ExitStack() as stack:
        modes: list[Any] = function_modes()
        for _ in modes:
            stack.enter_context(without_function_mode())
        stack.enter_context(dynamo_config.patch(recompile_limit=no_limit, accumulated_recompile_limit=no_limit))
        yield


# Inductor folds what it takes for constants by computing them; on the meta device everything looks constant to it.
_TRACE_OPTIONS = {"joint_graph_constant_folding": False}


class _Recorder:
    """A backend that runs the passes, keeps the reports of each of ``configs``, and returns outputs of the right shapes with
    nothing in them.
    """

    def __init__(self, configs: Sequence[BackendConfig]) -> None:
        self.configs = configs
        self.reports: list[list[Report]] = [[] for _ in configs]
        self.empty: list[RegionSet] = []  # what was found in graphs without regions

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return trace_and_compile(gm, example_inputs, self._record, _TRACE_OPTIONS)

    def _record(
        self, traced: fx.GraphModule, _inputs: Sequence[Any], static_inputs: Sequence[int], _compile_graph: CompileGraph
    ) -> BoxedCallable:
        plain, static_inputs = PlainGraph.of(traced), tuple(static_inputs)
        for config, reports in zip(self.configs, self.reports, strict=True):
            arguments: dict[str, Any] = {
                "static_inputs": static_inputs,
                "storage": config.storage,
                "selection": config.selection,
                "registered": registered_names(),
            }
            result = run_passes(traced, **arguments, notify=_warn)
            if result.guarded is not None:
                counted = CompiledGraph(KeptPasses(plain, arguments), count(result, config.storage))
                reports.append(describe_graph(counted, config))
            else:
                self.empty.append(result.found)
        return _Outputs(fx.map_arg(outputs(traced.graph), lambda node: node.meta["val"]))


def _warn(_topic: str, message: str) -> None:
    warnings.warn(f"taylorseer_fx: {message}", TaylorSeerWarning, stacklevel=2)


@dataclass(frozen=True)
class _Outputs:
    values: tuple[Any, ...]
    _boxed_call = True

    def __call__(self, args: list[Any]) -> list[Any]:
        args.clear()
        return [_empty_like(value) if isinstance(value, Tensor) else value for value in self.values]


def _empty_like(value: Tensor) -> Tensor:
    return torch.empty_strided(tuple(value.shape), value.stride(), dtype=value.dtype, device=value.device)
