"""``backend.explain()``: what was found in a graph, what was made of it, and what was left alone and why."""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import _suppress_guards

from taylorseer_fx.cache import Passes
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.errors import ConfigError, TaylorSeerWarning
from taylorseer_fx.graph_breaks import GraphBreak
from taylorseer_fx.passes.emit import graph_fake_mode
from taylorseer_fx.passes.failures import failure_report
from taylorseer_fx.passes.find_kept import num_buffer_bytes
from taylorseer_fx.passes.flops import count_flops
from taylorseer_fx.passes.module_path import source_line
from taylorseer_fx.passes.narrow import all_demanded
from taylorseer_fx.passes.pipeline import PassResult
from taylorseer_fx.passes.read_whole import ReadWhole, find_read_whole
from taylorseer_fx.passes.regions import Region, Rejected
from taylorseer_fx.passes.runner import StageRecord, count_ops
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.passes.traffic import Traffic, count_traffic
from taylorseer_fx.passes.windows import window_text
from taylorseer_fx.text import format_bytes, format_flops, format_table

SHOWN_STEPS = 50
SHOWN_READ_WHOLE = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureInfo:
    """A forecast tensor: its shape (symbolic sizes as text) and dtype; the part of it that forecast steps read, as Python would
    slice it ("" for all, "unread" for none), and the bytes of the buffers of that part over all orders.
    """

    shape: tuple[int | str, ...]
    dtype: torch.dtype
    kept: str
    buffer_bytes: int


@dataclass(frozen=True)
class RegionInfo:
    """A region: where it comes from, what it computes, and the features it ends in."""

    path: str
    kind: str
    features: tuple[FeatureInfo, ...]
    num_ops: int


@dataclass(frozen=True)
class GraphSummary:
    """One of several graphs that a model compiled to: ``num_layers`` places in the model use it, as far as it was called."""

    num_regions: int
    num_features: int
    flops: dict[str, int]
    takes_time: bool
    num_layers: int
    ends_at: str
    advice: str = ""


@dataclass(frozen=True)
class GraphNumbers:
    """What is counted in the graphs that the passes made of one graph, so that none of them need stay. Plain data, to be stored
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


@dataclass(frozen=True)
class CompiledGraph:
    """What the backend keeps of a graph: ``counted`` when it was compiled, and what makes it again."""

    passes: Passes
    counted: GraphNumbers | None = None
    graph_break: GraphBreak | None = None

    @cached_property
    def numbers(self) -> GraphNumbers:
        """What was counted, if need be now."""
        return self.counted or count(self.passes.run(), self.passes.arguments["storage"])


@dataclass(frozen=True)
class Report(GraphNumbers):
    """All of it as data; ``print`` shows it as tables. Where the model compiled to several graphs, about the one that ``number``
    tells, and ``graphs`` lists them all.
    """

    order: int
    schedule: str
    number: int
    graphs: tuple[GraphSummary, ...]
    cuda_graphs: tuple[str, ...]
    time_taken: tuple[int, ...]
    _remade: Passes = field(repr=False)

    def graph(self, name: str, *, lowered: bool = False) -> fx.GraphModule:
        """The graph "canonical", "guarded", "full" or "forecast"; ``graph("full").print_readable()`` prints it.

        A report keeps numbers only, so the passes make it again, which takes seconds for a large model. It is as they left it,
        before Inductor worked in it, and nobody else's.

        Args:
            name: of the graph.
            lowered: of "full" and "forecast", the graph that was compiled: what pays on the device at hand was rewritten in it.

        Raises:
            ConfigError: another name.
        """
        kinds = tuple(kind.value for kind in StepKind)
        names = kinds if lowered else ("canonical", *(("guarded",) if self.regions else ()), *kinds)
        if name not in names:
            raise ConfigError("name", " or ".join(map(repr, names)), name)
        result = self._remade.run()
        return (_lowered_graphs if lowered else _named_graphs)(result)[name]

    def __str__(self) -> str:
        parts = (self._all_graphs(), self._passes(), self._regions(), self._rejected(), self._summary())
        return "\n\n".join(part for part in parts if part)

    def _all_graphs(self) -> str:
        if len(self.graphs) == 1:
            return ""
        rows = [
            (
                f"{'>' if i == self.number else ' '}{i}",
                str(entry.num_regions),
                str(entry.num_features),
                f"{entry.flops['forecast'] / entry.flops['full']:.2%}" if entry.flops["full"] else "-",
                "yes" if entry.takes_time else "no",
                str(entry.num_layers or "-"),
                entry.ends_at,
            )
            for i, entry in enumerate(self.graphs)
        ]
        header = ("graph", "regions", "features", "forecast/full", "timestep", "layers", "ends at")
        advice = dict.fromkeys(f"to avoid such a break: {entry.advice}" for entry in self.graphs if entry.advice)
        return "\n".join([format_table(header, rows, right=(1, 2, 3, 5)), *advice])

    def _passes(self) -> str:
        rows = [(stage.name, str(stage.num_ops), f"{stage.duration_ms:.1f}") for stage in self.stages]
        left_out = [f"left out: {stage.name} ({stage.left_out})" for stage in self.stages if stage.left_out]
        return "\n".join([format_table(("pass", "ops", "ms"), rows, right=(1, 2)), *left_out])

    def _regions(self) -> str:
        if not self.regions:
            return ""
        rows = []
        for region in self.regions:
            for i, feature in enumerate(region.features):
                name = (region.path, region.kind) if i == 0 else ("", "")
                rows.append((*name, _shape_text(feature), feature.kept or "all", format_bytes(feature.buffer_bytes)))
        return format_table(("region", "kind", "feature", "kept", "buffers"), rows, right=(4,))

    def _rejected(self) -> str:
        return "\n".join(["executed in every step:", *(f"  {entry}" for entry in self.rejected)]) if self.rejected else ""

    def _summary(self) -> str:
        if not self.regions:
            return "no regions: this graph is executed as plain torch.compile would"
        kinds = Counter(region.kind for region in self.regions)
        num_features = sum(len(region.features) for region in self.regions)
        share = self.flops["forecast"] / self.flops["full"] if self.flops["full"] else 0.0
        num_full = self.schedule.count("F")
        lines = [
            f"granularity:   {self.granularity}",
            f"{len(self.regions)} regions ({', '.join(f'{count} {kind}' for kind, count in kinds.items())}), "
            f"{num_features} features, {len(self.rejected)} rejected",
            *map(self._step_line, self.num_ops),
            f"left:          {share:.2%} of the FLOPs in a forecast step; the fewest bytes it could move are "
            f"{format_bytes(self.traffic['forecast'].floor)}",
            f"schedule:      {self.schedule}  ({num_full} of {len(self.schedule)} steps full, "
            f"ceiling {len(self.schedule) / num_full:.2f}x)",
            f"buffers:       {format_bytes(self.buffer_bytes)} a stream (order {self.order}: {self.order + 1} a feature)",
            *(f"{'time inputs:' if i == 0 else '':14} {line}" for i, line in enumerate(self._times())),
            *(f"{'read whole:' if i == 0 else '':14} {line}" for i, line in enumerate(self._read_whole())),
            *(f"{'CUDA graphs:' if i == 0 else '':14} {line}" for i, line in enumerate(self.cuda_graphs)),
        ]
        if len(self.graphs) > 1:
            lines.append(f"graphs:        this is {self.number} of {len(self.graphs)}; explain(graph=i) shows another")
        return "\n".join(lines)

    def _read_whole(self) -> list[str]:
        """Operators that a forecast step computes whole for a part, the largest."""
        shown = [f"{entry.op} ({entry.path}), {format_bytes(entry.num_bytes)}" for entry in self.read_whole[:SHOWN_READ_WHOLE]]
        more = len(self.read_whole) - len(shown)
        return [*shown, *([f"and {more} more"] if more else [])]

    def _step_line(self, name: str) -> str:
        traffic = self.traffic[name]
        moved = f"reads {format_bytes(traffic.read)}, writes {format_bytes(traffic.written)}"
        num_lowered = self.num_lowered_ops[name]
        lowered = f" ({num_lowered} as compiled for {self.target})" if num_lowered != self.num_ops[name] else ""
        return f"{name + ' step:':14} {self.num_ops[name]} ops{lowered}, {format_flops(self.flops[name])}, {moved}"

    def _times(self) -> list[str]:
        """The candidates for the time, where each is first read, and, of several, which were taken for it."""
        several = len(self.time_inputs) > 1 and bool(self.time_taken)
        lines = []
        for i, (text, source) in enumerate(zip(self.time_inputs, self.time_sources, strict=True)):
            verdict = (": the time, since it moves" if i in self.time_taken else ": not the time") if several else ""
            lines.append(f"{text}, read at {source}{verdict}")
        return lines or [self._no_time()]

    def _no_time(self) -> str:
        if any(entry.takes_time for entry in self.graphs):
            return "none in this graph; the one above that takes the timestep tells it"
        return "none found: say the step with backend.stream(name, step=i), or backend.attach(pipe)"


def describe_model(
    graphs: Sequence[CompiledGraph],
    number: int,
    config: BackendConfig,
    layers: Mapping[int, int],
    cuda_graphs: tuple[str, ...],
    time_taken: tuple[int, ...],
) -> Report:
    """A report on one of the graphs of a model; ``layers`` counts the places that were called with each."""
    summaries = tuple(_summarize(entry, layers.get(i, 0)) for i, entry in enumerate(graphs))
    return describe_graph(graphs[number], config, range(len(graphs))[number], summaries, cuda_graphs, time_taken)


def _summarize(graph: CompiledGraph, num_layers: int) -> GraphSummary:
    numbers = graph.numbers
    return GraphSummary(
        num_regions=len(numbers.regions),
        num_features=sum(len(region.features) for region in numbers.regions),
        flops=numbers.flops,
        takes_time=bool(numbers.time_inputs),
        num_layers=num_layers,
        ends_at=str(graph.graph_break or "return"),
        advice=graph.graph_break.advice if graph.graph_break is not None else "",
    )


def describe_graph(
    graph: CompiledGraph,
    config: BackendConfig,
    number: int = 0,
    summaries: tuple[GraphSummary, ...] = (),
    cuda_graphs: tuple[str, ...] = (),
    time_taken: tuple[int, ...] = (),
) -> Report:
    """A report on one graph; ``cuda_graphs`` are lines on how the model's graphs are captured, ``time_taken`` the indices of the
    candidates for the time that were seen to move.
    """
    return Report(
        **vars(graph.numbers),
        order=config.order,
        schedule=config.schedule.describe(SHOWN_STEPS),
        number=number,
        graphs=summaries or (_summarize(graph, 0),),
        cuda_graphs=cuda_graphs,
        time_taken=time_taken,
        _remade=graph.passes,
    )


def count_if_possible(result: PassResult, storage: Storage) -> GraphNumbers | None:
    """As ``count``, while a model is being compiled, which must not fail or become narrower over it; nor is anything said then,
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
    with _suppress_guards(shape_env):
        yield


def count(result: PassResult, storage: Storage) -> GraphNumbers:
    """Read the numbers off what the passes made of one graph."""
    regions = tuple(_describe_region(region, storage) for region in result.found.regions)
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
        num_lowered_ops={name: count_ops(gm.graph) for name, gm in _lowered_graphs(result).items()},
        flops={name: count_flops(gm.graph) for name, gm in graphs.items()},
        traffic={name: _traffic(name, gm) for name, gm in graphs.items()},
        time_inputs=tuple(_input_text(inputs[i]) for i in result.inputs.time),
        time_sources=tuple(source_line(next(iter(inputs[i].users))) for i in result.inputs.time),
        read_whole=find_read_whole(graphs[StepKind.FORECAST.value].graph) if _is_narrowed(result) else (),
    )


def _is_narrowed(result: PassResult) -> bool:
    return bool(result.variants) and not any(stage.left_out for stage in result.stages if stage.name == "narrow_forecast")


def _lowered_graphs(result: PassResult) -> dict[str, fx.GraphModule]:
    """The graph that is compiled for each step kind; where nothing is forecast, the same for both."""
    whole = result.lowered[StepKind.FULL]
    return {kind.value: result.lowered.get(kind, whole).gm for kind in StepKind}


def _step_graphs(result: PassResult) -> dict[str, fx.GraphModule]:
    """The graph of each step kind; the same for both where nothing is forecast."""
    return {kind.value: result.variants[kind].gm if result.variants else result.canonical for kind in StepKind}


def _named_graphs(result: PassResult) -> dict[str, fx.GraphModule]:
    guarded = {"guarded": result.guarded.gm} if result.guarded else {}
    return {"canonical": result.canonical, **guarded, **_step_graphs(result)}


def _traffic(name: str, gm: fx.GraphModule) -> Traffic:
    """The bytes that a graph moves. A report must not fail over them: at worst they are those of reading everything whole."""
    try:
        return count_traffic(gm.graph)
    except Exception as error:
        price = f"the bytes that explain() tells of the {name} step are too many"
        warnings.warn(f"taylorseer_fx: {failure_report('traffic', error, price)}", TaylorSeerWarning, stacklevel=2)
        return count_traffic(gm.graph, all_demanded(gm.graph))


def _describe_region(region: Region, storage: Storage) -> RegionInfo:
    features = []
    for feature in region.features:
        value = feature.node.meta["val"]
        shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
        kept = "unread" if feature.kept is None else window_text(feature.kept)
        features.append(FeatureInfo(shape, value.dtype, kept, num_buffer_bytes(feature, storage)))
    return RegionInfo(region.path, region.kind.value, tuple(features), len(region.nodes))


def _shape_text(feature: FeatureInfo) -> str:
    return f"{str(feature.dtype).removeprefix('torch.')}[{', '.join(map(str, feature.shape))}]"


def _input_text(node: fx.Node) -> str:
    value: Tensor = node.meta["val"]
    return f"{node.name} {str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
