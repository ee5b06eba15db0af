"""Rewrite products of a few rows with a weight as sums, one per row, so that a CPU reads the weight at full memory bandwidth.

    before:  %gate = addmm(%b, %t, permute(%w, [1, 0]))                                 %t : [2, 1152]  %w : [1152, 1152]
    after:   %t0 = sum(mul(%w, select(%t, 0, 0)), [-1])  %t1 = sum(mul(%w, select(%t, 0, 1)), [-1])
             %gate = add(view(cat([%t0, %t1]), [2, 1152]), %b)

The rest of a forecast step is the embedding of the time and the gates, a row per sample: bound by reading the weights.
Inductor makes one loop of the sums, which loads a weight once, multiplies it with every row, and writes each row to its place in
what is concatenated. The rows are written out before, or it would compute them anew for every row of the weight.

Measured with 1152 x 1152 float32 weights, two threads (AMD EPYC, torch 2.13, MKL): 14, 9, 7 and 10 GB/s before with one to four
rows, 31, 30, 32 and 28 after, where a copy moves 36. bfloat16: 13, 12 and 13 before with one, two and four rows, 26, 22 and 14
after. With six rows and more little is gained.
"""

from torch import fx

from taylorseer_fx.compat import force_stride_order, get_computation_dtype
from taylorseer_fx.passes.effects import eliminate_dead_code
from taylorseer_fx.passes.emit import Emit, cast, copied, emitter, graph_fake_mode, standing_for
from taylorseer_fx.passes.ops import aten, tensor_meta

ROWS = range(1, 5)


def sum_few_rows(gm: fx.GraphModule) -> fx.GraphModule:
    """A new graph, to be compiled by Inductor, with the products of ``gm`` rewritten."""
    copy = copied(gm)
    graph = copy.graph
    emit = emitter(graph, graph_fake_mode(graph))
    for node in products(graph):
        if has_few_rows(node) and node.meta["val"].device.type == "cpu":
            with graph.inserting_before(node), standing_for(node, __name__):
                rewritten = _rewritten(emit, node)
            rewritten.meta = {**node.meta, "val": rewritten.meta["val"]}
            node.replace_all_uses_with(rewritten)
            graph.erase_node(node)
    eliminate_dead_code(graph)
    return copy


def products(graph: fx.Graph) -> list[fx.Node]:
    """The matrix products, with an addend or without."""
    return [node for op in (aten.addmm.default, aten.mm.default) for node in graph.find_nodes(op="call_function", target=op)]


def has_few_rows(node: fx.Node) -> bool:
    """Is it a product of few rows with the transpose of a matrix that lies in memory row by row, without factors?"""
    rows, weight = node.args[-2:]
    assert isinstance(rows, fx.Node)
    assert isinstance(weight, fx.Node)
    meta, value = tensor_meta(rows), tensor_meta(weight)
    if meta is None or value is None or node.kwargs or weight.target is not aten.permute.default:
        return False
    has_few = isinstance(meta.shape[0], int) and meta.shape[0] in ROWS
    return has_few and meta.dtype.is_floating_point and value.stride(0) == 1 and weight.args[1] == [1, 0]


def _rewritten(emit: Emit, node: fx.Node) -> fx.Node:
    *addend, rows, permuted = node.args
    assert isinstance(rows, fx.Node)
    assert isinstance(permuted, fx.Node)
    weight = permuted.args[0]
    assert isinstance(weight, fx.Node)
    num_rows, length = rows.meta["val"].shape
    dtype = get_computation_dtype(rows.meta["val"].dtype)
    weight, rows = cast(emit, weight, dtype), cast(emit, emit(force_stride_order, rows, [length, 1]), dtype)
    each = [emit(aten.mul.Tensor, weight, emit(aten.select.int, rows, 0, i)) for i in range(num_rows)]
    result = emit(aten.cat.default, [emit(aten.sum.dim_IntList, products, [-1]) for products in each])
    result = emit(aten.view.default, result, [num_rows, weight.meta["val"].shape[0]])
    result = emit(aten.add.Tensor, result, addend[0]) if addend else result
    return cast(emit, result, node.meta["val"].dtype)
