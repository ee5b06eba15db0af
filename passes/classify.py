"""Distinguish attention from MLP by the operands of their products.

Attention multiplies activations with activations (softmax or linear attention alike); an MLP multiplies activations with weights
only. A region is both when a weight product reaches the feature around its attention (the parallel blocks of FLUX) or behind a
residual add nested in the region (AuraFlow).
"""

from collections.abc import Collection, Sequence

from torch import fx

from taylorseer_fx.passes.dataflow import ancestors
from taylorseer_fx.passes.ops import FUSED_ATTENTION, FUSED_LAYERS, any_overload, contraction_operands, is_heavy, is_opaque
from taylorseer_fx.passes.regions import Kind


def classify(
    nodes: Sequence[fx.Node], features: Sequence[fx.Node], activations: set[fx.Node], nested: Collection[fx.Node] = ()
) -> Kind:
    """The kind of the region made of ``nodes`` (in graph order).

    Args:
        nodes: the region.
        features: its live-outs.
        activations: the nodes of the graph that depend on an input of the call; the rest are weights.
        nested: residual adds inside the region: a weight product behind one is more than attention's output projection.
    """
    attention = {node for node in nodes if is_attention(node, activations)}
    if not attention:
        return Kind.MLP
    projection = _descendants(attention, nodes) - _descendants(set(nested), nodes)
    around = ancestors(features, inside=set(nodes) - attention)
    return Kind.BOTH if any(is_heavy(node) and node not in projection for node in around) else Kind.ATTENTION


def activation_nodes(graph: fx.Graph, parameters: set[fx.Node]) -> set[fx.Node]:
    """Every node that depends on an input of the call; the rest are weights and constants, the same in every call."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        is_input = node.op == "placeholder" and node not in parameters
        if is_input or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def is_attention(node: fx.Node, activations: set[fx.Node]) -> bool:
    """Does ``node`` multiply activations with activations?"""
    if any_overload(node) in FUSED_ATTENTION | FUSED_LAYERS:
        return True
    if not is_heavy(node):
        return False
    multiplied = [operand in activations for operand in contraction_operands(node)]
    # An opaque operator that reads three activations is taken to read queries, keys and values.
    return sum(multiplied) >= 3 if is_opaque(node) else len(multiplied) == 2 and all(multiplied)


def _descendants(sources: set[fx.Node], nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes of ``nodes`` (in graph order) that are among ``sources`` or computed from them."""
    found = sources & set(nodes)
    for node in nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found
