"""Take the residual streams from their entries to their exits as one region: granularity "stack".

    before:  %x0 = embed   %x1 = add(%x0, mul(%g0, %F0))   ...   %xL = add(%xL-1, mul(%gL-1, %FL-1))   %out = final(%xL)
    region:  [everything that only %xL needs]              live-out: %xL      stored: %xL - %x0

The *exits* are the residual adds that the outputs read other than through a later one. The *entry* of an exit is what would be
left of it if no branch added anything: its trunk, followed through earlier adds of its residual stream, through views, slices and
factors (what scales the residual stream scales the entry), and into the parts of a concatenation (FLUX joins its text and image
residual streams halfway). Where that needs a residual add all the same, or has another shape than the exit, nothing is taken off,
and the exit is stored as it is.

With gates that are constant between two full steps this forecasts what the module granularity does, both being linear, from one
feature instead of two a block.
"""

from collections.abc import Iterable

from torch import fx

from taylorseer_fx.passes.belonging import find_outsiders_of_stack
from taylorseer_fx.passes.dataflow import ancestors, descends_from, live_nodes, seed_reach
from taylorseer_fx.passes.emit import Emit, adds_all_or_nothing, emitter, graph_fake_mode, standing_for
from taylorseer_fx.passes.find_residuals import find_features, find_residuals
from taylorseer_fx.passes.module_path import common_path, span_path
from taylorseer_fx.passes.ops import aten, dressed_input, is_heavy, packet, same_shape, tensor_meta
from taylorseer_fx.passes.ownership import find_bodies, find_owners, join_sharing
from taylorseer_fx.passes.regions import (
    Feature,
    Kind,
    Positions,
    Reason,
    Region,
    RegionSet,
    Rejected,
    ResidualAdd,
    positions_of,
    region_border,
)
from taylorseer_fx.passes.trunks import multiples, multiplied, without_branch

Residuals = dict[fx.Node, ResidualAdd]


@adds_all_or_nothing
def find_stack(graph: fx.Graph, parameters: Iterable[fx.Node]) -> RegionSet:
    """The stacks of a canonical graph, whose features are the exits of its residual streams. Entries are added to ``graph``.

    ``parameters`` are its weight placeholders. What does not belong to the blocks is executed where it is in no stack.
    """
    parameters = set(parameters)
    outsiders = find_outsiders_of_stack(graph, find_features(graph), parameters)
    outside = {feature.node for feature in outsiders}
    residuals = {feature.residual.add: feature.residual for feature in find_residuals(graph) if feature.node not in outside}
    exits = _exits(graph, residuals)
    rejected = [_not_floating(node) for node in exits if not _is_floating(node)]
    entries = _Entries(graph, residuals)
    accepted = tuple(Feature(node, residuals[node], entries.of(node)) for node in exits if _is_floating(node))
    positions, reach = positions_of(graph), seed_reach(graph, (residual.root for residual in residuals.values()))
    while True:
        owners = find_owners(graph, accepted, roots=[feature.base for feature in accepted if feature.base is not None])
        groups = join_sharing(accepted, owners, reach, lambda feature: feature.residual.root)
        regions = [_region(group, body, positions) for group, body in zip(groups, find_bodies(groups, owners), strict=True)]
        refused = {region: reason for region in regions if (reason := _refusal(region, positions)) is not None}
        if not refused:
            break
        rejected += [Rejected(region.path, reason, _exit_names(region)) for region, reason in refused.items()]
        dropped = {feature for region in refused for feature in region.features}
        accepted = tuple(feature for feature in accepted if feature not in dropped)
    inside = {node for region in regions for node in region.nodes}
    rejected += [entry for feature, entry in outsiders.items() if feature.residual.add not in inside]
    return RegionSet(tuple(regions), tuple(rejected), num_residual_adds=len(residuals), num_heavy=sum(map(is_heavy, graph.nodes)))


def _exits(graph: fx.Graph, residuals: Residuals) -> list[fx.Node]:
    live = live_nodes(graph, cut=residuals)
    return [node for node in graph.nodes if node in residuals and node in live]


def _is_floating(node: fx.Node) -> bool:
    meta = tensor_meta(node)
    return meta is not None and meta.dtype.is_floating_point


def _not_floating(node: fx.Node) -> Rejected:
    meta = tensor_meta(node)
    return Rejected(common_path([node], [node]), Reason.NOT_FLOATING, f"dtype {meta.dtype}" if meta is not None else "no tensor")


def _region(features: tuple[Feature, ...], body: set[fx.Node], positions: Positions) -> Region:
    nodes, live_ins = region_border(body, positions, [feature.base for feature in features])
    heavy = list(filter(is_heavy, nodes))
    path = span_path(heavy) if heavy else common_path(nodes, nodes)
    return Region(path, Kind.STACK, features, nodes, live_ins)


def _refusal(region: Region, positions: Positions) -> Reason | None:
    if not any(map(is_heavy, region.nodes)):
        return Reason.NEEDED_ELSEWHERE
    exits = [feature.node for feature in region.features]
    return Reason.CYCLE if descends_from(region.live_ins, exits, positions) else None


def _exit_names(region: Region) -> str:
    return ", ".join(feature.node.name for feature in region.features)


class _Entries:
    """The entries of residual streams, before anything is added to them; written into the graph on demand."""

    def __init__(self, graph: fx.Graph, residuals: Residuals) -> None:
        self._graph, self._residuals = graph, residuals
        self._known: dict[fx.Node, fx.Node] = {}
        self._mode = graph_fake_mode(graph)

    def of(self, add: fx.Node) -> fx.Node | None:
        """The entry of the residual stream that ``add`` is a state of; None where there is none to take off."""
        with self._graph.inserting_before(add), standing_for(add, __name__):
            entry = self._entry(add, emitter(self._graph, self._mode))
        needs_add = any(node in self._residuals for node in ancestors([entry]))
        return entry if same_shape(entry, add) and not needs_add else None

    def _entry(self, node: fx.Node, emit: Emit) -> fx.Node:
        states: list[tuple[fx.Node, fx.Node]] = []  # from the exit back, each with the next, which is dressed, scaled or added to
        while node not in self._known and (before := self._before(node)) is not None:
            states.append((node, before))
            node = before
        if node not in self._known:
            self._known[node] = self._cat(node, emit) if packet(node) is aten.cat else node
        entry = self._known[node]
        for state, before in reversed(states):
            if state in self._residuals:
                entry = without_branch(state, self._residuals[state].branch, entry, emit)
            else:
                entry = _redressed(state, before, entry, emit)
            self._known[state] = entry
        return entry

    def _before(self, node: fx.Node) -> fx.Node | None:
        if node in self._residuals:
            return next(side for side in node.all_input_nodes if side is not self._residuals[node].branch)
        if (inner := dressed_input(node)) is not None:
            return inner
        return next((operand for operand, _ in multiplied(node) if self._is_on_stream(operand)), None)

    def _is_on_stream(self, node: fx.Node) -> bool:
        return any(multiple.node in self._residuals for multiple in multiples(node))

    def _cat(self, node: fx.Node, emit: Emit) -> fx.Node:
        parts: list[fx.Node] = node.args[0]  # type: ignore[assignment]
        entries = [self._entry(part, emit) for part in parts]
        return node if entries == list(parts) else emit(aten.cat.default, entries, *node.args[1:], **node.kwargs)


def _redressed(state: fx.Node, inner: fx.Node, entry: fx.Node, emit: Emit) -> fx.Node:
    """Do to ``entry`` what ``state``, a view, slice, cast, mask or multiple of ``inner``, does to ``inner``."""
    if entry is inner:
        return state
    source: fx.Node = state.all_input_nodes[0]
    if inner not in state.all_input_nodes:  # getitem of a split
        source = emit(source.target, *fx.map_arg(source.args, lambda arg: entry if arg is inner else arg), **source.kwargs)
        return emit(state.target, source, state.args[1])
    return emit(state.target, *fx.map_arg(state.args, lambda arg: entry if arg is inner else arg), **state.kwargs)
