"""Replace a concatenation of all slices of a tensor by that tensor.

    before:  %text = slice(%y, 1, 0, 512)  %image = slice(%y, 1, 512, 4608)  %joined = cat([%text, %image], 1)
    after:   %joined is %y

FLUX cuts its tokens up and joins them anew between two of its single blocks. Inductor reads the parts one by one, each under a
mask, and then shares nothing with what reads the whole, such as what stores a feature.
"""

from itertools import pairwise
from typing import cast

from torch import fx

from taylorseer_fx.passes.demands import narrowed_needs
from taylorseer_fx.passes.effects import eliminate_dead_code
from taylorseer_fx.passes.emit import copied
from taylorseer_fx.passes.ops import aten, tensor_meta
from taylorseer_fx.passes.windows import Interval, whole


def join_slices(gm: fx.GraphModule) -> fx.GraphModule:
    """A new graph without the ``cat`` of slices that are the whole of a tensor."""
    copy = copied(gm)
    for node in copy.graph.find_nodes(op="call_function", target=aten.cat.default):
        if (source := _joined(node)) is not None:
            node.replace_all_uses_with(source)
    eliminate_dead_code(copy.graph)
    return copy


def _joined(node: fx.Node) -> fx.Node | None:
    """The tensor whose slices, all of them in order, ``node`` puts together."""
    parts = cast(list[fx.Node], node.args[0])
    source, meta = parts[0].all_input_nodes[0] if parts[0].all_input_nodes else None, tensor_meta(node)
    if source is None or meta is None or any(not _is_slice_of(part, source) for part in parts):
        return None
    dim = cast(int, node.args[1] if len(node.args) > 1 else 0) % meta.dim()
    intervals = [interval for part in parts if (interval := sliced(part, dim)) is not None]
    if len(intervals) < len(parts) or meta.shape != source.meta["val"].shape:
        return None
    follow = all(before[1] == after[0] for before, after in pairwise(intervals))
    return source if follow and intervals[0][0] == 0 and intervals[-1][1] == meta.shape[dim] else None


def _is_slice_of(node: fx.Node, source: fx.Node) -> bool:
    return node.target is aten.slice.Tensor and node.args[0] is source


def sliced(node: fx.Node, dim: int) -> Interval | None:
    """The interval of a slice along ``dim``; None where that is all, every other element, or along another dimension."""
    needs = narrowed_needs(node, whole(node))
    window = needs[0][1] if needs else ()
    return window[dim] if window and all(part is None or i == dim for i, part in enumerate(window)) else None
