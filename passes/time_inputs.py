"""Find the inputs that carry the diffusion time, by how they are used.

    %t -> mul(frequencies) -> sin, cos -> cat -> mm(weight) -> ...

A time input is embedded by sines and cosines and then multiplied with a weight, before it meets any input that is not embedded so
(masks aside). Rotary position ids also pass through sine and cosine, but meet queries and keys, not weights. A guidance scale or
an image size embedded the same way is returned too: it does not change along a generation, so it does no harm to a clock that
watches all of them for change.
"""

from collections.abc import Iterable

import torch
from torch import fx

from taylorseer_fx.passes.dataflow import seed_reach
from taylorseer_fx.passes.ops import aten, contraction_operands, is_heavy, packet, tensor_meta


def find_time_inputs(graph: fx.Graph, parameters: Iterable[fx.Node]) -> tuple[int, ...]:
    """Positions of the placeholders of ``graph`` that are embedded as a time; empty where there is none."""
    weights = set(parameters)
    placeholders = graph.find_nodes(op="placeholder")
    inputs = [node for node in placeholders if node not in weights and _may_be_time(node)]
    reach = seed_reach(graph, inputs)
    waves: dict[fx.Node, int] = {}  # bits of the inputs that reach a node as sines and cosines, by no heavy operator
    embedded = 0
    for node in graph.nodes:
        if packet(node) in (aten.sin, aten.cos):
            source = reach.reach[node]
            waves[node] = source if source.bit_count() == 1 else 0
        elif is_heavy(node):
            operands = contraction_operands(node)
            if any(not reach.reach[operand] for operand in operands):  # a weight
                for operand in operands:
                    embedded |= waves.get(operand, 0) if waves.get(operand) == reach.reach[operand] else 0
        else:
            for operand in node.all_input_nodes:
                waves[node] = waves.get(node, 0) | waves.get(operand, 0)
    return tuple(i for i, node in enumerate(placeholders) if node in reach.bits and reach.bits[node] & embedded)


def _may_be_time(node: fx.Node) -> bool:
    meta = tensor_meta(node)
    return meta is not None and meta.dtype is not torch.bool
