"""Remove the nodes, and then the inputs, that specialising left without a reader.

    before:  (%x, %w_qkv, %w_gate, %d0, ...)  %qkv = mm(%norm, %w_qkv) [unread]  %out = add(mul(%gate, %F), %x)
    after:   (%x, %w_gate, %d0, ...)                                             %out = add(mul(%gate, %F), %x)

Functional collectives count as pure here: one that is dead in the forecast graph is dead on every rank, since all ranks run the
same graph, and must not communicate. Inputs nobody reads are dropped, so that a forecast step is not handed the weights of the
attention that it does not run.
"""

from dataclasses import dataclass

from torch import fx

from taylorseer_fx.compat import fx_graph_cse
from taylorseer_fx.passes.effects import eliminate_dead_code
from taylorseer_fx.passes.emit import graph_module


@dataclass(frozen=True)
class Variant:
    """The finished graph of one step kind; ``input_positions``: the inputs that it still takes."""

    gm: fx.GraphModule
    input_positions: tuple[int, ...]


def clean_up(gm: fx.GraphModule) -> Variant:
    """Merge what inlining wrote twice, remove dead nodes, then drop the inputs that nothing reads."""
    graph = fx_graph_cse(gm.graph)
    eliminate_dead_code(graph)
    inputs = graph.find_nodes(op="placeholder")
    input_positions = tuple(i for i, node in enumerate(inputs) if node.users)
    for node in inputs:
        if not node.users:
            graph.erase_node(node)
    return Variant(graph_module(gm, graph, type(gm).__name__), input_positions)
