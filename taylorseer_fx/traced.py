"""Process one traced graph: run the passes on it, count it, and compile the graph of each step kind."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from taylorseer_fx.artifacts import CompiledSteps
from taylorseer_fx.cache import StepCode
from taylorseer_fx.compile import CompileGraph, compile_variants, kernels_awaited_at_the_end, make_eager, target_for
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.errors import NoRegionsError, PassError
from taylorseer_fx.graph_breaks import GraphBreak
from taylorseer_fx.messages import nothing_to_forecast
from taylorseer_fx.numbers import count_if_possible
from taylorseer_fx.passes.buffer_bytes import num_buffer_bytes
from taylorseer_fx.passes.lower import AS_IT_IS
from taylorseer_fx.passes.pipeline import PassResult, run_passes
from taylorseer_fx.passes.plain_graph import PlainGraph
from taylorseer_fx.passes.residual_ops import registered_names
from taylorseer_fx.passes.runner import Notify
from taylorseer_fx.remade import KeptPasses, Passes, StoredPasses
from taylorseer_fx.repro import saved_after
from taylorseer_fx.runtime.buffers import BufferLayout
from taylorseer_fx.text import format_bytes


@dataclass(frozen=True)
class GraphOrigin:
    """The origin of a graph: the break it ends at, and whether it is a part of a model that is not compiled as a whole."""

    graph_break: GraphBreak | None
    is_part: bool

    @property
    def is_part_of_model(self) -> bool:
        return self.is_part or self.graph_break is not None


def compile_steps(
    config: BackendConfig,
    notify: Notify,
    origin: GraphOrigin,
    tag: str | None,
    traced: fx.GraphModule,
    inputs: Sequence[Any],
    static_inputs: Sequence[int],
    compile_graph: CompileGraph,
) -> StepCode:
    """From the functional ATen graph to the code that stands for it.

    Raises:
        NoRegionsError: there is nothing to forecast, and by the settings this is an error.
        PassError: a pass failed that cannot be left out.
    """
    is_compiled = config.compiler == "inductor"
    arguments: dict[str, Any] = {
        "static_inputs": tuple(static_inputs),
        "storage": config.storage,
        "selection": config.selection,
        "graph_break": origin.graph_break.where if origin.graph_break is not None else None,
        "is_part": origin.is_part,
        "registered": registered_names(),
        "target": target_for(inputs) if is_compiled else AS_IT_IS,
        "disabled": config.disabled_passes,
    }
    try:
        result = run_passes(traced, **arguments, notify=notify)
    except PassError as error:
        error.args = (f"{error}\n{saved_after(error, traced, arguments)}",)
        raise
    if result.guarded is None and config.on_no_regions == "error" and not origin.is_part_of_model:
        hint = 'Pass on_no_regions="warn" to compile such graphs as torch.compile would.'
        raise NoRegionsError(f"{nothing_to_forecast(result.found)}\n{hint}")
    numbers = count_if_possible(result, config.storage)  # before Inductor works in the graphs
    with kernels_awaited_at_the_end(inputs):
        variants = compile_variants(result, inputs, static_inputs, compile_graph if is_compiled else make_eager)
        stored = StoredPasses.of(traced, arguments) if tag is not None and result.is_complete else None
        passes: Passes = stored or KeptPasses(PlainGraph.of(traced), arguments)
    steps = CompiledSteps(
        found=replace(result.found, regions=()),
        over_budget=_over_budget(config, result),
        inputs=result.inputs,
        variants=variants,
        layout=BufferLayout.of([node.meta["val"] for node in result.guarded.buffers], inputs) if result.guarded else None,
        coefficient_dtype=result.guarded.coefficient_dtype if result.guarded else None,
        passes=passes,
        numbers=numbers,
    )
    return StepCode(tag, steps)


def _over_budget(config: BackendConfig, result: PassResult) -> str:
    """The warning where modules were too much for the memory budget."""
    budget = config.memory_budget
    if budget is None or result.module_bytes is None or result.granularity == "module":
        return ""
    kept = sum(num_buffer_bytes(feature, config.storage) for feature in result.found.features)
    too_much = "" if kept <= budget else f", which still takes {format_bytes(kept)}"
    return (
        f"buffers for every module would take {format_bytes(result.module_bytes)} per stream, more than memory_budget="
        f'{format_bytes(budget)}: granularity "stack" instead{too_much}.'
    )
