"""Write products of a few rows with a small weight as sums: on a GPU, where launching one takes as long as reading its weight,
many of them then share a launch.

    before:  %gate = addmm(%b, %t, permute(%w, [1, 0]))                                 %t : [2, 1152]  %w : [1152, 1152]
    after:   %sums = sum(mul(unsqueeze(%w, 1), unsqueeze(%t, 0)), [-1])                 %sums : [1152, 2]
             %gate = add(clone(permute(%sums, [1, 0])), %b)

The rows come last, so neighbours in a block read the same row of the weight, which comes from memory once. Inductor puts sums
that read the same rows into one kernel, with what is done to the result, and as combo kernels those that share nothing, too. The
rows are written out before, or each row of the weight would compute them anew, and so is the result, which a kernel of many
polynomials has not the registers to put together.

A batched product over the weights of all blocks would need them side by side: a copy of each, in every step or kept for good.
"""

import torch
from torch import fx

from taylorseer_fx.compat import get_computation_dtype
from taylorseer_fx.passes.effects import eliminate_dead_code
from taylorseer_fx.passes.emit import Emit, cast, copied, emitter, graph_fake_mode, standing_for
from taylorseer_fx.passes.ops import aten
from taylorseer_fx.passes.sum_few_rows import has_few_rows, products

# As much as an H100 reads in the 2.5 us that a kernel takes to start, at 3 TB/s. DiT-XL/2's gates have 2.7 MB, FLUX.1-dev's 18.9.
LAUNCH_BYTES = 8_000_000
WRITTEN_OUT = "inductor_realize_to_strides"  # what Inductor calls it in a node's meta


def sum_small_weights(gm: fx.GraphModule) -> fx.GraphModule:
    """A new graph, to be compiled by Inductor, with the products of ``gm`` rewritten."""
    copy = copied(gm)
    graph = copy.graph
    emit = emitter(graph, graph_fake_mode(graph))
    for node in products(graph):
        if has_few_rows(node) and node.args[-1].meta["val"].nbytes <= LAUNCH_BYTES:  # type: ignore[union-attr]
            with graph.inserting_before(node), standing_for(node, __name__):
                rewritten = _rewritten(emit, node)
            rewritten.meta = {**node.meta, "val": rewritten.meta["val"], WRITTEN_OUT: True}
            node.replace_all_uses_with(rewritten)
            graph.erase_node(node)
    eliminate_dead_code(graph)
    return copy


def _rewritten(emit: Emit, node: fx.Node) -> fx.Node:
    *addend, rows, permuted = node.args
    assert isinstance(rows, fx.Node)
    assert isinstance(permuted, fx.Node)
    weight = permuted.args[0]
    assert isinstance(weight, fx.Node)
    if rows.op == "call_function":
        rows.meta[WRITTEN_OUT] = True
    dtype = get_computation_dtype(rows.meta["val"].dtype)
    weight, rows = cast(emit, weight, dtype), cast(emit, rows, dtype)
    multiplied = emit(aten.mul.Tensor, emit(aten.unsqueeze.default, weight, 1), emit(aten.unsqueeze.default, rows, 0))
    result = emit(aten.permute.default, emit(aten.sum.dim_IntList, multiplied, [-1]), [1, 0])
    result = emit(aten.clone.default, result, memory_format=torch.contiguous_format)
    result = emit(aten.add.Tensor, result, addend[0]) if addend else result
    return cast(emit, result, node.meta["val"].dtype)
