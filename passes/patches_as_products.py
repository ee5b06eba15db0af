"""Write a convolution whose windows lie side by side as a product: its result then lies in memory as the residual stream does.

    before:  %conv = convolution(%x, %w, %b, stride = [2, 2], ...)               %x : [B, C, H, W]  %w : [O, C, 2, 2]
    after:   %patches = reshape(permute(view(%x, [B, C, H/2, 2, W/2, 2]), [0, 2, 4, 1, 3, 5]), [B * H/2 * W/2, C * 2 * 2])
             %conv = permute(view(addmm(%b, %patches, permute(view(%w, [O, -1]), [1, 0])), [B, H/2, W/2, O]), [0, 3, 1, 2])
"""

from math import prod

import torch
from torch import fx

from taylorseer_fx.passes.effects import eliminate_dead_code
from taylorseer_fx.passes.emit import Emit, copied, emitter, graph_fake_mode, standing_for
from taylorseer_fx.passes.ops import aten


def patches_as_products(gm: fx.GraphModule) -> fx.GraphModule:
    copy = copied(gm)
    graph = copy.graph
    emit = emitter(graph, graph_fake_mode(graph))
    for node in graph.find_nodes(op="call_function", target=aten.convolution.default):
        if _cuts_into_patches(node):
            with graph.inserting_before(node), standing_for(node, __name__):
                product = _product(emit, node)
            product.meta = {**node.meta, "val": product.meta["val"]}
            node.replace_all_uses_with(product)
            graph.erase_node(node)
    eliminate_dead_code(graph)
    return copy


def _cuts_into_patches(node: fx.Node) -> bool:
    source, weight, _, stride, padding, dilation, transposed, _, groups = node.args
    sizes, window = source.meta["val"].shape[2:], weight.meta["val"].shape[2:]
    return (
        tuple(stride) == tuple(window)
        and not any(padding)
        and set(dilation) == {1}
        and not transposed
        and groups == 1
        and all(isinstance(size, int) and size % part == 0 for size, part in zip(sizes, window, strict=True))
    )


def _product(emit: Emit, node: fx.Node) -> fx.Node:
    source, weight, bias = node.args[:3]
    batch, channels, *sizes = source.meta["val"].shape
    outputs, _, *window = weight.meta["val"].shape
    counts = [size // part for size, part in zip(sizes, window, strict=True)]
    rank = len(sizes)
    split = [n for pair in zip(counts, window, strict=True) for n in pair]
    cut = emit(aten.view.default, source, [batch, channels, *split])
    each = emit(aten.permute.default, cut, [0, *range(2, 2 + 2 * rank, 2), 1, *range(3, 3 + 2 * rank, 2)])
    patches = emit(aten.reshape.default, each, [batch * prod(counts), channels * prod(window)])
    columns = emit(aten.permute.default, emit(aten.view.default, weight, [outputs, channels * prod(window)]), [1, 0])
    product = emit(aten.mm.default, patches, columns) if bias is None else emit(aten.addmm.default, bias, patches, columns)
    last = emit(aten.view.default, product, [batch, *counts, outputs])
    return emit(aten.permute.default, last, [0, rank + 1, *range(1, rank + 1)])
