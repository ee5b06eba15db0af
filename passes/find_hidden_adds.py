"""Name the operators that may add a residual out of sight, so that it is not forecast.

    %f = linear(norm(%x))
    %y = residual_gate_add(%x, %f, %gate)        an operator of somebody's own: reads %x, and %f that was made of it
    %z = _transformer_encoder_layer_fwd(%y)      a layer of torch in one operator, of a kind that is not written out

In a graph with regions an opaque operator is named only if it joins a tensor and what heavy operators made of it, outside of all
regions; where nothing was found, if a result has the shape of one of its inputs.
"""

from collections.abc import Collection, Iterable

from torch import Tensor, fx

from taylorseer_fx.compat import HigherOrderOperator, OpOverload
from taylorseer_fx.passes.classify import activation_nodes
from taylorseer_fx.passes.dataflow import seed_reach
from taylorseer_fx.passes.module_path import common_path, source_line
from taylorseer_fx.passes.ops import FUSED_LAYERS, is_opaque, packet, tensor_meta
from taylorseer_fx.passes.regions import Reason, RegionSet, Rejected


def find_hidden_adds(
    graph: fx.Graph, parameters: Collection[fx.Node], found: RegionSet, is_part: bool = False
) -> tuple[Rejected, ...]:
    """One entry per operator, in graph order.

    Args:
        graph: a canonical graph.
        parameters: its weight placeholders.
        found: what was found in it.
        is_part: the graph is a part of a model, so that it is no wonder if nothing was found.
    """
    in_regions = {node for region in found.regions for node in region.nodes}
    outside = [node for node in graph.nodes if node not in in_regions]
    fused = [node for node in outside if packet(node) in FUSED_LAYERS]
    candidates = {node: _trunks(node) for node in outside if _operator(node) is not None}
    if found.regions or is_part:
        joined = _joining(graph, candidates)
    else:
        activations = activation_nodes(graph, set(parameters))
        joined = {node for node, trunks in candidates.items() if any(trunk in activations for trunk in trunks)}
    groups: dict[str, list[fx.Node]] = {}
    for node in outside:
        if node in joined or node in fused:
            groups.setdefault(_name(node), []).append(node)
    return tuple(
        Rejected(common_path(nodes, nodes[:1]), Reason.FUSED if nodes[0] in fused else Reason.OPAQUE, _detail(name, nodes))
        for name, nodes in groups.items()
    )


def _operator(node: fx.Node) -> OpOverload | None:
    """The opaque operator that a node calls: itself, or in torch's wrapper of one that writes to its arguments."""
    if not is_opaque(node):
        return None
    target = node.args[0] if isinstance(node.target, HigherOrderOperator) and node.args else node.target
    return target if isinstance(target, OpOverload) else None


def _trunks(node: fx.Node) -> list[fx.Node]:
    """The inputs of the node that have the shape of one of its results; a vector is no residual stream."""
    value = node.meta["val"]
    given = {tuple(map(str, v.shape)) for v in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(v, Tensor)}
    read = [(source, tensor_meta(source)) for source in node.all_input_nodes]
    return [source for source, meta in read if meta is not None and meta.dim() > 1 and tuple(map(str, meta.shape)) in given]


def _joining(graph: fx.Graph, candidates: dict[fx.Node, list[fx.Node]]) -> set[fx.Node]:
    """Those of ``candidates`` that read a residual stream and something of its shape which heavy operators made of it."""
    if not candidates:
        return set()
    reach = seed_reach(graph, _each(candidates.values()))
    return {
        node
        for node, trunks in candidates.items()
        if any(reach.depends_through_heavy(branch, trunk) for trunk in trunks for branch in trunks if branch is not trunk)
    }


def _each(groups: Iterable[list[fx.Node]]) -> list[fx.Node]:
    return [node for group in groups for node in group]


def _detail(name: str, nodes: list[fx.Node]) -> str:
    others = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
    return f"{name}, at {source_line(nodes[0])}{others}"


def _name(node: fx.Node) -> str:
    """``engine.residual_gate_add.default``."""
    operator = _operator(node)
    if operator is not None and operator._schema.is_mutable:
        return f"{operator}, which writes to an argument: use and register one that returns its result"
    return str(operator if operator is not None else node.target)
