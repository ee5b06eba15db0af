"""Store a feature where it was computed, in the loop that reads it: at the end of the graph its copy is a kernel of its own.

    before:  %F = addmm(...)  %x1 = add(mul(%gate, %F), %x)  ...all other blocks...  copy_(%b1, %F)
    after:   %F = addmm(...)  copy_(%b1, %F)  %x1 = add(mul(%gate, %F), %x)  ...all other blocks...

On a GPU Inductor does not fuse loops that stand far from each other, nor loops of unequal length. Of a feature that is stored
in part and read whole, the rows outside of the stored window are therefore written too: as the window's nearest row, to its
place, which is then written several times with the same values.

    before:  copy_(%b1, slice(%F, 1, 512, 4608))                                                        %F : [1, 4608, 3072]
    after:   index_put_(%b1, [None, clamp_min(%row - 512, 0)], where(%row >= 512, %F, slice(%F, 1, 512, 513)))

What remains is a feature that is joined with other tokens before it is read, as between FLUX's double and single blocks: one
of 76. A buffer is still written after everything that reads it.
"""

from typing import Any, cast

import torch
from torch import fx

from taylorseer_fx.passes.demands import Demands, demanded
from taylorseer_fx.passes.effects import eliminate_dead_code
from taylorseer_fx.passes.emit import Emit, copied, emit_as_it_is, emitter, graph_fake_mode, standing_for
from taylorseer_fx.passes.join_slices import sliced
from taylorseer_fx.passes.ops import aten, prims
from taylorseer_fx.passes.windows import contains, normalized, sizes_of


def store_early(gm: fx.GraphModule) -> fx.GraphModule:
    """A new graph, each buffer of which is written right behind the last node that this has to wait for."""
    copy = copied(gm)
    graph, demands = copy.graph, demanded(copy.graph)
    emit = emitter(graph, graph_fake_mode(graph))
    position = {node: i for i, node in enumerate(graph.nodes)}
    for store in graph.find_nodes(op="call_function", target=aten.copy_.default):
        buffer, value = store.all_input_nodes
        last = max([buffer, value, *(user for user in buffer.users if user is not store)], key=position.__getitem__)
        with graph.inserting_before(last.next), standing_for(value, __name__):
            dim = _windowed_dim(value, demands)
            target, args = (aten.copy_.default, (buffer, value)) if dim is None else _spread(emit, buffer, value, dim)
            emit_as_it_is(graph, target, args, buffer.meta["val"])
        graph.erase_node(store)
    eliminate_dead_code(graph)
    return copy


def _windowed_dim(value: fx.Node, demands: Demands) -> int | None:
    """The dimension along which only a part of what ``value`` slices is stored; None where no more of that is read, either."""
    source = value.args[0] if value.target is aten.slice.Tensor else None
    if not isinstance(source, fx.Node) or not all(isinstance(size, int) for size in source.meta["val"].shape):
        return None
    for dim in range(value.meta["val"].dim()):
        if (interval := sliced(value, dim)) is not None:
            stored = normalized([interval if i == dim else None for i in range(value.meta["val"].dim())], sizes_of(source))
            return None if all(contains(stored, read) for read in demands[source]) else dim
    return None


def _spread(emit: Emit, buffer: fx.Node, value: fx.Node, dim: int) -> tuple[Any, tuple[Any, ...]]:
    """The operator that writes every row of what ``value`` slices, and its arguments."""
    source, (start, end) = cast(fx.Node, value.args[0]), cast(tuple[int, int], sliced(value, dim))
    whole = source.meta["val"]
    row = emit(prims.iota.default, whole.shape[dim], start=0, step=1, dtype=torch.int64, device=whole.device, requires_grad=False)
    along = emit(aten.view.default, row, [-1 if i == dim else 1 for i in range(whole.dim())])
    place = emit(aten.clamp_min.default, emit(aten.sub.Tensor, row, start), 0)
    rows = source
    if start > 0:
        first = emit(aten.slice.Tensor, source, dim, start, start + 1)
        rows = emit(aten.where.self, emit(aten.ge.Scalar, along, start), rows, first)
    if end < whole.shape[dim]:
        last = emit(aten.slice.Tensor, source, dim, end - 1, end)
        rows = emit(aten.where.self, emit(aten.lt.Scalar, along, end), rows, last)
        place = emit(aten.clamp_max.default, place, end - start - 1)
    return aten.index_put_.default, (buffer, [*[None] * dim, place], rows)
