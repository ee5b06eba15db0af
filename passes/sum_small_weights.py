"""Write products of a few rows with a small weight as one sum each: on a GPU many of them then share a launch.

    before:  %gate = addmm(%b, %t, permute(%w, [1, 0]))                                 %t : [2, 1152]  %w : [1152, 1152]
    after:   %sums = sum(mul(unsqueeze(%w, 1), unsqueeze(%t, 0)), [-1])                 %sums : [1152, 2]
             %gate = add(permute(%sums, [1, 0]), %b)
"""

import torch
from torch import fx

from taylorseer_fx.compat import get_computation_dtype
from taylorseer_fx.passes.effects import eliminate_dead_code
from taylorseer_fx.passes.emit import Emit, cast, copied, emitter, graph_fake_mode, standing_for
from taylorseer_fx.passes.ops import aten, tensor_meta

ROWS = range(1, 5)
LAUNCH_BYTES = 8_000_000


def sum_small_weights(gm: fx.GraphModule) -> fx.GraphModule:
    copy = copied(gm)
    graph = copy.graph
    emit = emitter(graph, graph_fake_mode(graph))
    products = [node for op in (aten.addmm.default, aten.mm.default) for node in graph.find_nodes(op="call_function", target=op)]
    for node in products:
        if _is_small(node) and not node.kwargs:
            with graph.inserting_before(node), standing_for(node, __name__):
                rewritten = _rewritten(emit, node)
            rewritten.meta = {**node.meta, "val": rewritten.meta["val"], "inductor_realize_to_strides": True}
            node.replace_all_uses_with(rewritten)
            graph.erase_node(node)
    eliminate_dead_code(graph)
    return copy


def _is_small(node: fx.Node) -> bool:
    rows, weight = node.args[-2:]
    meta, value = tensor_meta(rows), tensor_meta(weight)
    if meta is None or value is None or weight.target is not aten.permute.default:
        return False
    has_few = isinstance(meta.shape[0], int) and meta.shape[0] in ROWS
    is_small = value.numel() * value.dtype.itemsize <= LAUNCH_BYTES
    return has_few and is_small and meta.dtype.is_floating_point and value.stride(0) == 1 and weight.args[1] == [1, 0]


def _rewritten(emit: Emit, node: fx.Node) -> fx.Node:
    *addend, rows, permuted = node.args
    weight = permuted.args[0]
    if rows.op == "call_function": rows.meta["inductor_realize_to_strides"] = True
    dtype = get_computation_dtype(rows.meta["val"].dtype)
    weight, rows = cast(emit, weight, dtype), cast(emit, rows, dtype)
    products = emit(aten.mul.Tensor, emit(aten.unsqueeze.default, weight, 1), emit(aten.unsqueeze.default, rows, 0))
    result = emit(aten.permute.default, emit(aten.sum.dim_IntList, products, [-1]), [1, 0])
    result = emit(aten.clone.default, result, memory_format=torch.contiguous_format)
    result = emit(aten.add.Tensor, result, addend[0]) if addend else result
    result = cast(emit, result, node.meta["val"].dtype)
    return result
