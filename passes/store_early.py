"""Store a feature where it was computed, in the loop that reads it: at the end of the graph its copy is a kernel of its own.

    before:  %F = addmm(...)  %x1 = add(mul(%gate, %F), %x)  ...all other blocks...  copy_(%b1, %F)
    after:   %F = addmm(...)  copy_(%b1, %F)  %x1 = add(mul(%gate, %F), %x)  ...all other blocks...

On a GPU Inductor does not fuse loops that stand far from each other, nor loops of unequal length. If a feature is stored
in part and read whole, the rows outside of the stored window are therefore written too: as the window's nearest row, to its
place, which is then written several times with the same values.

    before:  copy_(%b1, slice(%F, 1, 512, 4608))                                                        %F : [1, 4608, 3072]
    after:   index_put_(%b1, [None, clamp_min(%row - 512, 0)], where(%row >= 512, %F, slice(%F, 1, 512, 513)))

A feature that is joined with other rows before anything else is made of it (``passes/find_join.py``) is read in the loop of the
``cat``. It is written there in the same way, with zeros for the other rows.

    before:  copy_(%b1, %F)  %joined = cat([%text, add(%x, mul(%gate, %F))], 1)                         %F : [1, 4096, 3072]
    after:   index_put_(%b1, [None, clamp_min(%row - 512, 0)], where(%row >= 512, cat([%zeros, %F], 1), slice(%F, 1, 0, 1)))

A buffer is still written after everything that reads it.
"""

from typing import Any, cast

import torch
from torch import Tensor, fx

from taylorseer_fx.passes.demands import Demands, demanded
from taylorseer_fx.passes.effects import eliminate_dead_code
from taylorseer_fx.passes.emit import Emit, copied, emit_as_it_is, emitter, graph_fake_mode, standing_for
from taylorseer_fx.passes.find_join import Rows, find_join
from taylorseer_fx.passes.join_slices import sliced
from taylorseer_fx.passes.ops import aten, prims
from taylorseer_fx.passes.windows import contains, normalized, sizes_of


def store_early(gm: fx.GraphModule) -> fx.GraphModule:
    """Make a new graph in which each buffer is written right behind the last node that the write has to wait for."""
    copy = copied(gm)
    graph, demands = copy.graph, demanded(copy.graph)
    emit = emitter(graph, graph_fake_mode(graph))
    position = {node: i for i, node in enumerate(graph.nodes)}
    for store in graph.find_nodes(op="call_function", target=aten.copy_.default):
        buffer, value = store.all_input_nodes
        last = max([buffer, value, *(user for user in buffer.users if user is not store)], key=position.__getitem__)
        with graph.inserting_before(last.next), standing_for(value, __name__):
            target, args = _written(emit, store, demands)
            emit_as_it_is(graph, target, args, buffer.meta["val"])
        graph.erase_node(store)
    eliminate_dead_code(graph)
    return copy


def _written(emit: Emit, store: fx.Node, demands: Demands) -> tuple[Any, tuple[Any, ...]]:
    """The operator that does what ``store`` does in the loop that reads the value, and its arguments."""
    buffer, value = store.all_input_nodes
    if (rows := _windowed(value, demands)) is not None:
        return aten.index_put_.default, _spread(emit, buffer, value, cast(fx.Node, value.args[0]), rows)
    if (rows := find_join(value, store)) is not None:
        return aten.index_put_.default, _spread(emit, buffer, value, _among_zeros(emit, value, rows), rows)
    return aten.copy_.default, (buffer, value)


def _windowed(value: fx.Node, demands: Demands) -> Rows | None:
    """The rows of the stored ``value`` in the tensor that it slices; None where no more of that is read, either."""
    source = value.args[0] if value.target is aten.slice.Tensor else None
    sizes = sizes_of(source) if isinstance(source, fx.Node) else ()
    if not isinstance(source, fx.Node) or not all(isinstance(size, int) for size in sizes):
        return None
    for dim in range(len(sizes)):
        if (interval := sliced(value, dim)) is not None:
            stored = normalized([interval if i == dim else None for i in range(len(sizes))], sizes)
            is_all = all(contains(stored, read) for read in demands[source])
            return None if is_all else Rows(dim, interval[0], cast(int, sizes[dim]))
    return None


def _among_zeros(emit: Emit, value: fx.Node, rows: Rows) -> fx.Node:
    """``value`` with zeros for the other rows; it is joined as a view that nothing else reads, as the parts of %joined are."""
    meta = value.meta["val"]
    view = emit(aten.expand.default, value, list(meta.shape))
    num_behind = rows.length - rows.start - meta.shape[rows.dim]
    before, behind = (_zeros(emit, meta, rows.dim, length) for length in (rows.start, num_behind))
    return emit(aten.cat.default, [*before, view, *behind], rows.dim)


def _zeros(emit: Emit, like: Tensor, dim: int, length: int) -> list[fx.Node]:
    """``length`` rows of zeros, if there are any."""
    shape = [length if i == dim else size for i, size in enumerate(like.shape)]
    return [emit(aten.full.default, shape, 0.0, dtype=like.dtype, device=like.device, pin_memory=False)] if length else []


def _spread(emit: Emit, buffer: fx.Node, value: fx.Node, whole: fx.Node, rows: Rows) -> tuple[Any, ...]:
    """The arguments that write each row of ``whole`` so that ``buffer`` becomes ``value``, which are ``rows`` of it."""
    device, ndim, num_stored = whole.meta["val"].device, whole.meta["val"].dim(), value.meta["val"].shape[rows.dim]
    row = emit(prims.iota.default, rows.length, start=0, step=1, dtype=torch.int64, device=device, requires_grad=False)
    along = emit(aten.view.default, row, [-1 if i == rows.dim else 1 for i in range(ndim)])
    place, values, end = emit(aten.clamp_min.default, emit(aten.sub.Tensor, row, rows.start), 0), whole, rows.start + num_stored
    if rows.start > 0:
        first = emit(aten.slice.Tensor, value, rows.dim, 0, 1)
        values = emit(aten.where.self, emit(aten.ge.Scalar, along, rows.start), values, first)
    if end < rows.length:
        last = emit(aten.slice.Tensor, value, rows.dim, num_stored - 1, num_stored)
        values = emit(aten.where.self, emit(aten.lt.Scalar, along, end), values, last)
        place = emit(aten.clamp_max.default, place, num_stored - 1)
    return buffer, [*[None] * rows.dim, place], values
