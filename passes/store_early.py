"""Store a feature where it was computed, not at the end: on a GPU one kernel then reads it for the residual and for its buffer.

    before:  %F = addmm(...)  %x1 = add(mul(%gate, %F), %x)  ...all other blocks...  copy_(%b1, %F)
    after:   %F = addmm(...)  copy_(%b1, %F)  %x1 = add(mul(%gate, %F), %x)  ...all other blocks...

Inductor does not fuse two loops that stand far from each other (64 of them in between), so each feature of a deep model was copied
by a kernel of its own, and lived until then. A buffer is still written after whatever reads it.
"""

from torch import fx

from taylorseer_fx.passes.emit import copied
from taylorseer_fx.passes.ops import aten


def store_early(gm: fx.GraphModule) -> fx.GraphModule:
    """A new graph, each ``copy_`` of which stands right behind the last node that it has to wait for."""
    copy = copied(gm)
    position = {node: i for i, node in enumerate(copy.graph.nodes)}
    for store in copy.graph.find_nodes(op="call_function", target=aten.copy_.default):
        buffer, value = store.all_input_nodes
        readers = [user for user in buffer.users if user is not store]
        max([buffer, value, *readers], key=position.__getitem__).append(store)
    return copy
