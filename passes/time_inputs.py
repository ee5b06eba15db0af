"""Find the inputs that carry the diffusion time, by how they are used.

    %t -> mul(frequencies) -> sin, cos -> cat -> mm(weight) -> ...

A time input is embedded by sines and cosines and then multiplied with a weight, before it meets any other input. Rotary position
ids also pass through sine and cosine, but meet queries and keys, not weights. A guidance scale or an image size embedded the same
way is returned too: it does not change along a generation, so it does no harm to a clock that watches all of them for change.
"""

from collections.abc import Iterable

from torch import fx

from taylorseer_fx.passes.dataflow import seed_reach
from taylorseer_fx.passes.ops import aten, is_heavy, packet, tensor_meta


def find_time_inputs(graph: fx.Graph, parameters: Iterable[fx.Node]) -> tuple[int, ...]:
    """Positions of the placeholders of ``graph`` that are embedded as a time; empty where there is none."""
    weights = set(parameters)
    placeholders = graph.find_nodes(op="placeholder")
    inputs = [node for node in placeholders if node not in weights and tensor_meta(node) is not None]
    waves = [node for node in graph.nodes if packet(node) in (aten.sin, aten.cos)]
    reach = seed_reach(graph, [*inputs, *waves])
    input_bits = sum(reach.bits[node] for node in inputs)
    waves_of: dict[int, int] = {}  # an input's bit -> the bits of the sines and cosines of that input alone
    for wave in waves:
        source = reach.reach[wave] & input_bits
        waves_of[source] = waves_of.get(source, 0) | reach.bits[wave]
    embedded = 0
    for node in graph.nodes:
        source = reach.reach[node] & input_bits
        if is_heavy(node) and source.bit_count() == 1 and reach.reach[node] & waves_of.get(source, 0):
            embedded |= source
    return tuple(i for i, node in enumerate(placeholders) if node in reach.bits and reach.bits[node] & embedded)
