"""Report the sums that come nearest to a residual add in a graph without regions, and what stopped each.

    %sum = add(%a, %b)

                                                                       why it is none
    %a : [2, 8, 4], %b : [2, 1, 4]                                     the sides differ in shape
    %b = f(%a), f without matrix product, convolution or attention     nothing heavy lies between
    %a = f(%x), %b = g(%x)                                             neither side is what the other starts from

Sums with a side that is the same in every call (a bias, an embedding of positions) are none and are not reported.
"""

from collections.abc import Iterable
from dataclasses import replace

from torch import fx

from taylorseer_fx.passes.classify import activation_nodes
from taylorseer_fx.passes.dataflow import SeedReach
from taylorseer_fx.passes.find_residuals import find_features
from taylorseer_fx.passes.module_path import common_path, source_line
from taylorseer_fx.passes.ops import (
    CONTRACTION_OPERANDS,
    FUSED_ATTENTION,
    aten,
    is_heavy,
    packet,
    same_shape,
    tensor_meta,
    undress,
)
from taylorseer_fx.passes.regions import NearMiss, RegionSet

MOST = 5


def with_near_misses(found: RegionSet, graph: fx.Graph, parameters: Iterable[fx.Node]) -> RegionSet:
    """Add to ``found``, which holds no region, what is to be reported about it."""
    num_heavy, num_taken_apart = count_heavy(graph)
    misses = find_near_misses(graph, parameters)
    return replace(found, num_heavy=num_heavy, num_taken_apart=num_taken_apart, near_misses=misses)


def find_near_misses(graph: fx.Graph, parameters: Iterable[fx.Node]) -> tuple[NearMiss, ...]:
    """The near misses, nearest first, one per line of the model, at most ``MOST``."""
    activations = activation_nodes(graph, set(parameters))
    residual = {feature.residual.add for feature in find_features(graph)}
    others = [node for node in graph.nodes if _is_sum(node) and node not in residual]
    sums = [node for node in others if activations.issuperset(node.all_input_nodes)]
    reach = SeedReach(undress(side) for node in sums for side in node.all_input_nodes)
    behind_heavy: set[fx.Node] = set()
    for node in graph.nodes:
        reach.visit(node)
        if is_heavy(node) or not behind_heavy.isdisjoint(node.all_input_nodes):
            behind_heavy.add(node)
    found: dict[str, tuple[int, NearMiss]] = {}
    for node in sums:
        distance, why = _what_stopped(node, reach, behind_heavy)
        line = source_line(node)
        if line not in found or distance < found[line][0]:
            found[line] = distance, NearMiss(common_path([node], [node]), line, why)
    return tuple(miss for _, miss in sorted(found.values(), key=lambda entry: entry[0])[:MOST])


def count_heavy(graph: fx.Graph) -> tuple[int, int]:
    """Count the heavy operators that the model calls, and those of them that torch took apart: a product of one row becomes a
    multiplication and a sum. All that became of one call (attention, two products) counts once.
    """
    whole, taken_apart = set(), set()
    for node in graph.nodes:
        call = next((source.name for source in node.meta.get("from_node") or ()), node.name)
        if is_heavy(node):
            whole.add(call)
        elif _original(node) in CONTRACTION_OPERANDS or _original(node) in FUSED_ATTENTION:
            taken_apart.add(call)
    return len(whole | taken_apart), len(taken_apart - whole)


def _original(node: fx.Node) -> object:
    """The operator that torch decomposed to this node among others."""
    return getattr(node.meta.get("original_aten"), "overloadpacket", None)


def _is_sum(node: fx.Node) -> bool:
    if node.op != "call_function" or packet(node) not in (aten.add, aten.sub) or len(node.all_input_nodes) != 2:
        return False
    metas = [tensor_meta(side) for side in node.all_input_nodes]
    return all(meta is not None and meta.dim() > 0 and meta.dtype.is_floating_point for meta in metas)


def _what_stopped(node: fx.Node, reach: SeedReach, behind_heavy: set[fx.Node]) -> tuple[int, str]:
    """The distance of ``node`` from a residual add, and the reason in words."""
    left, right = node.all_input_nodes
    ways = [(undress(left), right), (undress(right), left)]
    if any(reach.depends_through_heavy(branch, trunk) for trunk, branch in ways):
        if same_shape(left, right):
            return 0, f"it is a {_name(node)} of a form that is not known"
        return 0, f"its sides differ in shape: {_shape(left)} and {_shape(right)}"
    is_heavy_sum = not behind_heavy.isdisjoint((left, right))
    if any(reach.depends(branch, trunk) for trunk, branch in ways):
        return 2, "no matrix product, convolution or attention lies between its sides"
    if not is_heavy_sum:
        return 3, "no matrix product, convolution or attention comes before it"
    return 1, f"neither side is what the other starts from: they end in {_name(left)} and {_name(right)}"


def _name(node: fx.Node) -> str:
    return getattr(packet(node), "__name__", node.name) if node.op == "call_function" else f"input {node.name}"


def _shape(node: fx.Node) -> str:
    meta = tensor_meta(node)
    return str(list(meta.shape)) if meta is not None else "?"
