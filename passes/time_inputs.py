"""Find the inputs that may carry the diffusion time, by how they are used. Which of them does is seen when they move.

    %t -> mul(frequencies) -> sin, cos -> cat -> mm(weight) -> ...           embedded by waves, then multiplied with a weight
    %t -> mul(frequencies) -> sin, cos -> cat(%tokens) -> ...                a token of its own beside the sample's
    %t -> index(%table)                                                      picks rows of a table (of sines, say)
    %t -> mul(frequencies) -> sin, cos -> return                             embedded in a graph of its own, the weight in another

A time input is embedded by sines and cosines before it meets any input that is not embedded so (masks aside). Rotary position
ids also pass through sine and cosine, but are multiplied with queries and keys, not with weights. A guidance scale or an image
size embedded the same way is a candidate too; it does not move from step to step. The sample is none, although it may be
embedded by waves as well.
"""

from collections.abc import Iterable

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import guard_or_false

from taylorseer_fx.passes.dataflow import SeedReach, seed_reach
from taylorseer_fx.passes.emit import outputs
from taylorseer_fx.passes.ops import aten, contraction_operands, is_heavy, packet, tensor_meta

_WAVES = (aten.sin, aten.cos)
_JOINS = (aten.cat, aten.add)
_LOOKUPS = (aten.embedding, aten.index, aten.index_select)


def find_time_inputs(
    graph: fx.Graph, parameters: Iterable[fx.Node], samples: Iterable[int] = (), is_part: bool = False
) -> tuple[tuple[int, ...], bool]:
    """The positions of placeholders of ``graph`` that may carry the time, empty where there is none; and whether it is certain
    that a time is among them, which it isn't where they are merely looked up in a table.

    Args:
        graph: a canonical graph.
        parameters: its weight placeholders.
        samples: positions of the inputs that hold the sample.
        is_part: the graph is a part of a model that does not compile as a whole, so that a weight may follow in another part.
    """
    weights, placeholders = set(parameters), graph.find_nodes(op="placeholder")
    excluded = weights | {placeholders[i] for i in samples}
    inputs = [node for node in placeholders if node not in weights and _may_be_time(node)]
    reach = seed_reach(graph, inputs)
    waves = _waves(graph, reach)
    found = _embedded(graph, reach, waves)
    if not found and is_part:
        found = _returned(graph, reach, waves)
    allowed = [i for i, node in enumerate(placeholders) if node in reach.bits and node not in excluded]
    waving = tuple(i for i in allowed if reach.bits[placeholders[i]] & found)
    if waving:
        return waving, True
    found = _looked_up(graph, reach)
    return tuple(i for i in allowed if reach.bits[placeholders[i]] & found), False


def _may_be_time(node: fx.Node) -> bool:
    meta = tensor_meta(node)
    return meta is not None and meta.dtype is not torch.bool


def _is_one_number(node: fx.Node) -> bool:
    """Does the input hold one number for all samples, or one for each?"""
    meta = tensor_meta(node)
    return meta is not None and all(guard_or_false(size == 1) for size in meta.shape[1:])


def _waves(graph: fx.Graph, reach: SeedReach) -> dict[fx.Node, int]:
    """Bits of the inputs that reach a node as sines and cosines, by no heavy operator: of one input, or of several that have one
    value a sample (two times, and what lies between them), unlike positions.
    """
    numbers = sum(bit for node, bit in reach.bits.items() if _is_one_number(node))
    waves: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if packet(node) in _WAVES:
            source = reach.reach[node]
            waves[node] = source if source.bit_count() == 1 or not source & ~numbers else 0
        elif not is_heavy(node):
            for operand in node.all_input_nodes:
                waves[node] = waves.get(node, 0) | waves.get(operand, 0)
    return waves


def _embedded(graph: fx.Graph, reach: SeedReach, waves: dict[fx.Node, int]) -> int:
    """Bits of the inputs that meet, as nothing but waves, a weight or a tensor that is no wave at all."""

    def pure(node: fx.Node) -> int:
        return waves.get(node, 0) if waves.get(node, 0) == reach.reach[node] else 0

    found = 0
    for node in graph.nodes:
        if is_heavy(node):
            operands = contraction_operands(node)
            meets = any(not reach.reach[operand] for operand in operands)  # a weight
        else:
            operands = tuple(node.all_input_nodes) if packet(node) in _JOINS else ()
            meets = any(reach.reach[operand] and not waves.get(operand, 0) for operand in operands)
        if meets:
            for operand in operands:
                found |= pure(operand)
    return found


def _returned(graph: fx.Graph, reach: SeedReach, waves: dict[fx.Node, int]) -> int:
    """Bits of the inputs that leave the graph as nothing but waves."""
    found = 0
    for node in outputs(graph):
        if isinstance(node, fx.Node) and waves.get(node, 0) == reach.reach.get(node):
            found |= waves.get(node, 0)
    return found


def _looked_up(graph: fx.Graph, reach: SeedReach) -> int:
    """Bits of the integer inputs that pick rows of a table: a time, or a class, which stays the same."""
    found = 0
    for node in graph.nodes:
        if packet(node) in _LOOKUPS and isinstance(node.args[0], fx.Node) and not reach.reach[node.args[0]]:
            for operand in node.all_input_nodes[1:]:
                meta = tensor_meta(operand)
                if meta is not None and not meta.dtype.is_floating_point and reach.reach[operand].bit_count() == 1:
                    found |= reach.reach[operand]
    return found
