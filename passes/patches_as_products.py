"""Write a convolution whose windows lie side by side as a product: its result then lies in memory as the residual stream does.

    before:  %conv = convolution(%x, %w, %b, stride = [2, 2], ...)               %x : [B, C, H, W]  %w : [O, C, 2, 2]
    after:   %patches = reshape(permute(view(%x, [B, C, H/2, 2, W/2, 2]), [0, 2, 4, 1, 3, 5]), [B * H/2 * W/2, C * 2 * 2])
             %rows = addmm(%b, %patches, permute(view(%w, [O, C * 2 * 2]), [1, 0]))
             %conv = clone(permute(view(%rows, [B, H/2, W/2, O]), [0, 3, 1, 2]))

A transformer reads the patches row by row, a convolution writes them channel by channel, so the kernel that meets both is one
over tiles. In a forecast step it holds some forty polynomials, too: of DiT-XL/2's, most configurations spilled registers, up to
11 KB a thread. The clone's values lie as the convolution's did; Inductor reads through it.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, cast

import torch
from torch import fx

from taylorseer_fx.passes.effects import eliminate_dead_code
from taylorseer_fx.passes.emit import Emit, copied, emitter, graph_fake_mode, standing_for
from taylorseer_fx.passes.ops import aten


def patches_as_products(gm: fx.GraphModule) -> fx.GraphModule:
    """A new graph with such convolutions of ``gm`` rewritten."""
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
    source, weight, _, stride, padding, dilation, transposed, _, groups = cast(tuple[Any, ...], node.args)
    image, window = source.meta["val"], weight.meta["val"]
    is_plain = not any(padding) and set(dilation) == {1} and not transposed and groups == 1
    side_by_side = tuple(stride) == tuple(window.shape[2:]) and window.is_contiguous()
    sizes = zip(image.shape[2:], window.shape[2:], strict=True)
    return is_plain and side_by_side and all(isinstance(size, int) and size % part == 0 for size, part in sizes)


def _product(emit: Emit, node: fx.Node) -> fx.Node:
    source, weight, bias = cast(tuple[fx.Node, fx.Node, fx.Node | None], node.args[:3])
    batch, channels, *sizes = source.meta["val"].shape
    num_outputs, _, *window = weight.meta["val"].shape
    counts = [size // part for size, part in zip(sizes, window, strict=True)]
    patches = emit(aten.reshape.default, _cut(emit, source, counts, window), [batch * prod(counts), channels * prod(window)])
    columns = emit(aten.permute.default, emit(aten.view.default, weight, [num_outputs, channels * prod(window)]), [1, 0])
    rows = emit(aten.mm.default, patches, columns) if bias is None else emit(aten.addmm.default, bias, patches, columns)
    channels_last = emit(aten.view.default, rows, [batch, *counts, num_outputs])
    result = emit(aten.permute.default, channels_last, [0, len(counts) + 1, *range(1, len(counts) + 1)])
    return emit(aten.clone.default, result, memory_format=torch.contiguous_format)


def _cut(emit: Emit, source: fx.Node, counts: Sequence[int], window: Sequence[int]) -> fx.Node:
    """Cut ``source`` into batch, patches along each dimension, channels, and the places in a patch."""
    batch, channels = source.meta["val"].shape[:2]
    pairs = [size for pair in zip(counts, window, strict=True) for size in pair]
    places = range(2, 2 + len(pairs), 2)
    cut = emit(aten.view.default, source, [batch, channels, *pairs])
    return emit(aten.permute.default, cut, [0, *places, 1, *(place + 1 for place in places)])
