"""Count what the passes made of a graph: regions, operators, FLOPs, bytes; so that of the graphs themselves none need stay."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from taylorseer_fx.compat import suppress_guards
from taylorseer_fx.errors import TaylorSeerWarning
from taylorseer_fx.passes.buffer_bytes import num_buffer_bytes
from taylorseer_fx.passes.collectives import Collectives, count_collectives, find_sums
from taylorseer_fx.passes.dataflow import holds
from taylorseer_fx.passes.demands import all_demanded
from taylorseer_fx.passes.emit import graph_fake_mode
from taylorseer_fx.passes.failures import failure_report
from taylorseer_fx.passes.flops import count_flops
from taylorseer_fx.passes.module_path import source_line
from taylorseer_fx.passes.pipeline import PassResult
from taylorseer_fx.passes.read_whole import ReadWhole, find_read_whole
from taylorseer_fx.passes.regions import Region, Rejected
from taylorseer_fx.passes.runner import StageRecord, count_ops
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.passes.traffic import Traffic, count_traffic
from taylorseer_fx.passes.windows import window_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureInfo:
    """A forecast tensor: its shape (symbolic sizes as text) and dtype; the part of it that forecast steps read, as Python would
    slice it ("" for all, "unread" for none), and the bytes of the buffers of that part over all orders. ``is_replicated``: it is
    the same on each rank that shares the model, a sum over all of them.
    """

    shape: tuple[int | str, ...]
    dtype: torch.dtype
    stored: str
    buffer_bytes: int
    is_replicated: bool


@dataclass(frozen=True)
class RegionInfo:
    """A region: where it comes from, what it computes, and the features it ends in."""

    path: str
    kind: str
    features: tuple[FeatureInfo, ...]
    num_ops: int


@dataclass(frozen=True)
class GraphNumbers:
    """The numbers counted in the graphs made of one graph, so that none of them need stay. Plain data, to be stored
    with the code.

    ``num_lowered_ops`` are those of the graphs that were compiled, for ``target``; all else is counted before they are lowered.
    """

    regions: tuple[RegionInfo, ...]
    rejected: tuple[Rejected, ...]
    stages: tuple[StageRecord, ...]
    buffer_bytes: int
    granularity: str
    target: str
    num_ops: dict[str, int]
    num_lowered_ops: dict[str, int]
    flops: dict[str, int]
    traffic: dict[str, Traffic]
    time_inputs: tuple[str, ...]
    time_sources: tuple[str, ...]
    read_whole: tuple[ReadWhole, ...]
    collectives: dict[str, tuple[Collectives, ...]]

    @property
    def replicated_bytes(self) -> int:
        """The part of ``buffer_bytes`` that is the same on each rank that shares the model."""
        features = [feature for region in self.regions for feature in region.features]
        return sum(feature.buffer_bytes for feature in features if feature.is_replicated)


def count_if_possible(result: PassResult, storage: Storage) -> GraphNumbers | None:
    """Count while a model is being compiled, which must not fail or become narrower over it; nor is anything reported then,
    but when ``explain()`` counts again.
    """
    try:
        with warnings.catch_warnings(action="error", category=TaylorSeerWarning), _no_guards(result.canonical.graph):
            return count(result, storage)
    except Exception as error:
        log.info("not counted until explain() asks: %s", error)
        return None


@contextmanager
def _no_guards(graph: fx.Graph) -> Iterator[None]:
    """A formula may compare sizes, which Dynamo would take for a condition of the compiled code."""
    shape_env = graph_fake_mode(graph).shape_env
    if shape_env is None:
        yield
        return
    with suppress_guards(shape_env):
        yield


def count(result: PassResult, storage: Storage) -> GraphNumbers:
    """Read the numbers off what the passes made of one graph."""
    sums = find_sums(result.canonical.graph)
    regions = tuple(_describe_region(region, storage, sums) for region in result.found.regions)
    graphs = _step_graphs(result)
    inputs = result.canonical.graph.find_nodes(op="placeholder")
    return GraphNumbers(
        regions=regions,
        rejected=result.found.rejected,
        stages=result.stages,
        buffer_bytes=sum(feature.buffer_bytes for region in regions for feature in region.features),
        granularity=result.granularity,
        target=result.target.name,
        num_ops={name: count_ops(gm.graph) for name, gm in graphs.items()},
        num_lowered_ops={name: count_ops(gm.graph) for name, gm in lowered_graphs(result).items()},
        flops={name: count_flops(gm.graph) for name, gm in graphs.items()},
        traffic={name: _traffic(name, gm) for name, gm in graphs.items()},
        time_inputs=tuple(_input_text(inputs[i]) for i in result.inputs.time),
        time_sources=tuple(source_line(next(iter(inputs[i].users))) for i in result.inputs.time),
        read_whole=find_read_whole(graphs[StepKind.FORECAST.value].graph) if _is_narrowed(result) else (),
        collectives={name: count_collectives(gm.graph) for name, gm in graphs.items()},
    )


def _is_narrowed(result: PassResult) -> bool:
    return bool(result.variants) and not any(stage.left_out for stage in result.stages if stage.name == "narrow_forecast")


def lowered_graphs(result: PassResult) -> dict[str, fx.GraphModule]:
    """The graph that is compiled for each step kind; where nothing is forecast, the same for both."""
    whole = result.lowered[StepKind.FULL]
    return {kind.value: result.lowered.get(kind, whole).gm for kind in StepKind}


def _step_graphs(result: PassResult) -> dict[str, fx.GraphModule]:
    """The graph of each step kind; the same for both where nothing is forecast."""
    return {kind.value: result.variants[kind].gm if result.variants else result.canonical for kind in StepKind}


def named_graphs(result: PassResult) -> dict[str, fx.GraphModule]:
    guarded = {"guarded": result.guarded.gm} if result.guarded else {}
    return {"canonical": result.canonical, **guarded, **_step_graphs(result)}


def _traffic(name: str, gm: fx.GraphModule) -> Traffic:
    """The bytes that a graph moves. A report must not fail over them: at worst they are those of reading everything whole."""
    try:
        return count_traffic(gm.graph)
    except Exception as error:
        price = f"explain() reports more bytes than the {name} step moves"
        warnings.warn(f"taylorseer_fx: {failure_report('traffic', error, price)}", TaylorSeerWarning, stacklevel=2)
        return count_traffic(gm.graph, all_demanded(gm.graph))


def _describe_region(region: Region, storage: Storage, sums: frozenset[fx.Node]) -> RegionInfo:
    features = []
    for feature in region.features:
        value = feature.node.meta["val"]
        shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
        stored = "unread" if feature.stored_window is None else window_text(feature.stored_window)
        features.append(
            FeatureInfo(shape, value.dtype, stored, num_buffer_bytes(feature, storage), is_replicated=holds(feature.node, sums))
        )
    return RegionInfo(region.path, region.kind.value, tuple(features), len(region.nodes))


def _input_text(node: fx.Node) -> str:
    value: Tensor = node.meta["val"]
    return f"{node.name} {str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
