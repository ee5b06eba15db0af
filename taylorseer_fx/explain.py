"""``backend.explain()``: what was found in a graph, what was made of it, and what was left alone and why."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import fx

from taylorseer_fx.config import BackendConfig
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.graph_breaks import GraphBreak
from taylorseer_fx.numbers import FeatureInfo, GraphNumbers, count, lowered_graphs, named_graphs
from taylorseer_fx.passes.collectives import Collectives
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.planned import PlannedRuns
from taylorseer_fx.remade import Passes
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.text import format_bytes, format_flops, format_table

SHOWN_STEPS = 50
SHOWN_READ_WHOLE = 5


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
class CompiledGraph:
    """The backend's record of a graph: ``counted`` when it was compiled, and what makes it again."""

    passes: Passes
    counted: GraphNumbers | None = None
    graph_break: GraphBreak | None = None

    @cached_property
    def numbers(self) -> GraphNumbers:
        """The numbers of the graph, counted now if need be."""
        return self.counted or count(self.passes.run(), self.passes.arguments["storage"])


@dataclass(frozen=True)
class Report(GraphNumbers):
    """A report on one compiled graph, as data; ``print`` shows it as tables. If the model compiled to several graphs, it is on
    the one of ``number``, and ``graphs`` lists them all.
    """

    order: int
    num_buffers: int
    schedule: str
    number: int
    graphs: tuple[GraphSummary, ...]
    cuda_graphs: tuple[str, ...]
    time_taken: tuple[int, ...]
    _remade: Passes = field(repr=False)

    def graph(self, name: str, *, lowered: bool = False) -> fx.GraphModule:
        """Make the graph "canonical", "guarded", "full" or "forecast" again; ``graph("full").print_readable()`` prints it.

        A report keeps numbers only, so the passes make it again, which takes seconds for a large model. It is as they left it,
        before Inductor worked in it, and a copy of your own.

        Args:
            name: of the graph.
            lowered: for "full" and "forecast", the graph that was compiled, with the rewrites for the device at hand.

        Raises:
            ConfigError: another name.
        """
        kinds = tuple(kind.value for kind in StepKind)
        names = kinds if lowered else ("canonical", *(("guarded",) if self.regions else ()), *kinds)
        if name not in names:
            raise ConfigError("name", " or ".join(map(repr, names)), name)
        result = self._remade.run()
        return (lowered_graphs if lowered else named_graphs)(result)[name]

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
                rows.append((*name, _shape_text(feature), feature.stored or "all", format_bytes(feature.buffer_bytes)))
        return format_table(("region", "kind", "feature", "stored", "buffers"), rows, right=(4,))

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
            f"buffers:       {format_bytes(self.buffer_bytes)} per stream (order {self.order}: {self.num_buffers} per feature)",
            *(f"{'time inputs:' if i == 0 else '':14} {line}" for i, line in enumerate(self._times())),
            *(f"{'read whole:' if i == 0 else '':14} {line}" for i, line in enumerate(self._read_whole())),
            *(f"{'ranks:' if i == 0 else '':14} {line}" for i, line in enumerate(self._collectives())),
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

    def _collectives(self) -> list[str]:
        """What ranks that share the model exchange in a step of either kind, and which buffers all of them keep."""
        if not any(self.collectives.values()):
            return []
        lines = [f"a {name} step communicates {collectives_text(entries)}" for name, entries in self.collectives.items()]
        return [*lines, *([replicated_text(self.replicated_bytes)] if self.replicated_bytes else [])]

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
            return "none in this graph; the step comes from the graph above that takes the timestep"
        return "none found: give the step by backend.stream(name, step=i), or backend.attach(pipe)"


def describe_model(
    graphs: Sequence[CompiledGraph],
    number: int,
    config: BackendConfig,
    layers: Mapping[int, int],
    cuda_graphs: tuple[str, ...],
    time_taken: tuple[int, ...],
    last_schedule: Schedule | None,
) -> Report:
    """A report on one of the graphs of a model.

    ``layers`` counts the places that were called with each; ``last_schedule`` is that of the last generation.
    """
    summaries = tuple(_summarize(entry, layers.get(i, 0)) for i, entry in enumerate(graphs))
    return describe_graph(graphs[number], config, range(len(graphs))[number], summaries, cuda_graphs, time_taken, last_schedule)


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
    last_schedule: Schedule | None = None,
) -> Report:
    """A report on one graph; ``cuda_graphs`` are lines on how the model's graphs are captured, ``time_taken`` the indices of the
    candidates for the time that were seen to move.
    """
    schedule = last_schedule or PlannedRuns(config, _ignore).schedule().for_run(_length(config))
    return Report(
        **vars(graph.numbers),
        order=config.order,
        num_buffers=config.storage.num_buffers,
        schedule=schedule.describe(schedule.num_steps or SHOWN_STEPS),
        number=number,
        graphs=summaries or (_summarize(graph, 0),),
        cuda_graphs=cuda_graphs,
        time_taken=time_taken,
        _remade=graph.passes,
    )


def _length(config: BackendConfig) -> int:
    """The steps of a run that has not happened yet."""
    return config.plan.num_steps if config.plan is not None else config.num_steps or SHOWN_STEPS


def _ignore(_topic: str, _message: str) -> None:
    pass


def collectives_text(entries: Iterable[Collectives]) -> str:
    """What a step communicates: the operators with the bytes that each rank receives."""
    return ", ".join(f"{entry.count} {entry.op}, {format_bytes(entry.num_bytes)}" for entry in entries) or "nothing"


def replicated_text(num_bytes: int) -> str:
    """Which buffers ranks have in common."""
    return f"each rank keeps the same {format_bytes(num_bytes)} of buffers, since these features are sums over all ranks"


def _shape_text(feature: FeatureInfo) -> str:
    return f"{str(feature.dtype).removeprefix('torch.')}[{', '.join(map(str, feature.shape))}]"
