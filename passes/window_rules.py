"""For each operator: the windows of its inputs that a window of its output needs, and the operator on these.

    slice, split, select, unbind     a window of the input; the operator itself is gone, or smaller
    pointwise                        the same window of every operand, less the broadcast dimensions
    view, permute, expand, ...       the window as the input sees it, where it is one there
    cat                              of each part what the window meets
    mm, addmm, bmm                   rows of one operand, columns of the other: gate chunks slice the weight of their linear
    reductions that keep the dims    everything along the reduced dimensions
    pad                              the data, where no padding is in the window
    all_gather, waited for           the rows of each rank's shard (``passes/gathers.py``)

Sizes are compared as integers: a rule does not apply where a symbolic size decides.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import SymInt, fx

from taylorseer_fx.passes.emit import TO_THE_END, Emit
from taylorseer_fx.passes.gathers import build_gathered, gathered_needs, is_gathered
from taylorseer_fx.passes.ops import CASTS, aten, packet
from taylorseer_fx.passes.windows import Interval, Window, length, normalized, sizes_of, slice_window, whole

Part = tuple[fx.Node, Window]
Needs = list[Part]
Build = Callable[[Emit, fx.Node, Window, list[fx.Node]], fx.Node]


@dataclass(frozen=True)
class Rule:
    """``needs(node, window)``: the windows of its inputs, None where the rule does not apply.
    ``build(emit, node, window, inputs)``: the operator on what its inputs are in these windows, in that order.
    """

    needs: Callable[[fx.Node, Window], Needs | None]
    build: Build


def rule_of(node: fx.Node) -> Rule | None:
    """The rule for an operator; None where it has none."""
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        return _GETITEM.get(packet(node.all_input_nodes[0]))
    if packet(node) in _RULES:
        return _RULES[packet(node)]
    if is_gathered(node):
        return _GATHERED
    return _POINTWISE if is_pointwise(node) else None


def is_pointwise(node: fx.Node) -> bool:
    """Is each element made of the same element of every operand, once these are broadcast, in the same way each time?"""
    tags = getattr(node.target, "tags", ())
    return packet(node) in CASTS or (torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags)


def _arg(node: fx.Node, position: int, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else default


def _is_one(size: int | SymInt) -> bool:
    return isinstance(size, int) and size == 1


def _ndim(node: fx.Node) -> int:
    return len(sizes_of(node))


def _dims(given: int | Iterable[int], ndim: int) -> set[int]:
    """The dimensions ``given``, counted from the front. A tensor without any takes 0 and -1 for one all the same."""
    return {dim % ndim for dim in ([given] if isinstance(given, int) else given)} if ndim else set()


def _broadcast(window: Window, sizes: Sequence[int | SymInt], source: fx.Node) -> Window:
    """The window of an operand that is broadcast to ``sizes``."""
    own = sizes_of(source)
    lead = len(sizes) - len(own)
    aligned = zip(window[lead:], own, sizes[lead:], strict=True)
    return tuple(None if _is_one(size) and not _is_one(full) else part for part, size, full in aligned)


def _build_same(emit: Emit, node: fx.Node, _window: Window, inputs: list[fx.Node]) -> fx.Node:
    """Emit ``node`` on other inputs."""
    other = dict(zip(node.all_input_nodes, inputs, strict=True))
    return emit(node.target, *fx.map_arg(node.args, other.__getitem__), **fx.map_arg(node.kwargs, other.__getitem__))


def _build_nothing(_emit: Emit, _node: fx.Node, _window: Window, inputs: list[fx.Node]) -> fx.Node:
    """Use the input as it is: the operator only took a part of it."""
    return inputs[0]


def _pointwise(node: fx.Node, window: Window) -> Needs | None:
    return [(source, _broadcast(window, sizes_of(node), source)) for source in node.all_input_nodes]


# Parts of a tensor -------------------------------------------------------------------------------------------------------


def _slice(node: fx.Node, window: Window) -> Needs | None:
    source, dim, start, end = _arg(node, 0), _arg(node, 1, 0), _arg(node, 2) or 0, _arg(node, 3)
    end = TO_THE_END if end is None else end
    if _arg(node, 4, 1) != 1 or not isinstance(start, int) or not isinstance(end, int):
        return None
    sizes = sizes_of(source)
    size = sizes[dim]
    if isinstance(size, int):
        start, end = (min(max(bound + size if bound < 0 else bound, 0), size) for bound in (start, end))
        return [(source, normalized(slice_window(window, dim % len(sizes), start, max(start, end)), sizes))]
    if start < 0 or end != TO_THE_END:
        return None  # where it lies depends on the size
    return [(source, normalized(slice_window(window, dim % len(sizes), start, None), sizes))]


def _split_result(node: fx.Node, window: Window) -> Needs | None:
    """The rule for ``getitem(split(x, sizes, dim), i)``."""
    split, index = _arg(node, 0), _arg(node, 1)
    source, dim = _arg(split, 0), _arg(split, 2, 0)
    sizes, lengths = sizes_of(source), [part.shape[dim] for part in split.meta["val"]]
    if not all(isinstance(size, int) for size in (*lengths, sizes[dim])):
        return None
    start = sum(lengths[:index])
    return [(source, normalized(slice_window(window, dim % len(sizes), start, start + lengths[index]), sizes))]


def _select(node: fx.Node, window: Window) -> Needs | None:
    return _selected(_arg(node, 0), _arg(node, 1), _arg(node, 2), window)


def _unbind_result(node: fx.Node, window: Window) -> Needs | None:
    """The rule for ``getitem(unbind(x, dim), i)``."""
    unbind = _arg(node, 0)
    return _selected(_arg(unbind, 0), _arg(unbind, 1, 0), _arg(node, 1), window)


def _selected(source: fx.Node, dim: int, index: int | fx.Node, window: Window) -> Needs | None:
    sizes = sizes_of(source)
    size, dim = sizes[dim], dim % len(sizes)
    if not isinstance(index, int) or not isinstance(size, int):
        return None
    position = index if index >= 0 else index + size
    return [(source, normalized((*window[:dim], (position, position + 1), *window[dim:]), sizes))]


def _build_select(emit: Emit, node: fx.Node, _window: Window, inputs: list[fx.Node]) -> fx.Node:
    return emit(aten.select.int, inputs[0], _arg(node, 1), 0)


def _build_unbind_result(emit: Emit, node: fx.Node, _window: Window, inputs: list[fx.Node]) -> fx.Node:
    return emit(aten.select.int, inputs[0], _arg(_arg(node, 0), 1, 0), 0)


# Another look at the same elements ---------------------------------------------------------------------------------------


def _moving(dims_of: Callable[[fx.Node], Sequence[int | None]]) -> Rule:
    """For an operator that reorders, adds or drops dimensions: ``dims_of`` maps each of the output's to its origin."""

    def needs(node: fx.Node, window: Window) -> Needs | None:
        source = node.all_input_nodes[0]
        inner: list[Interval | None] = list(whole(source))
        for part, dim in zip(window, dims_of(node), strict=True):
            if dim is not None:
                inner[dim] = part
        return [(source, tuple(inner))]

    return Rule(needs, _build_same)


def _permuted(node: fx.Node) -> Sequence[int]:
    return [dim % _ndim(node) for dim in _arg(node, 1)]


def _transposed(node: fx.Node) -> Sequence[int]:
    dims = list(range(_ndim(node)))
    if len(dims) > 1:
        a, b = _arg(node, 1, 0), _arg(node, 2, -1)
        dims[a], dims[b] = dims[b], dims[a]
    return dims


def _unsqueezed(node: fx.Node) -> Sequence[int | None]:
    dim = _arg(node, 1) % _ndim(node)
    return [None if i == dim else i - (i > dim) for i in range(_ndim(node))]


def _squeezed(node: fx.Node) -> Sequence[int]:
    gone = _squeezed_away(node)
    return [dim for dim in range(_ndim(node.all_input_nodes[0])) if dim not in gone]


def _squeezed_away(node: fx.Node) -> list[int]:
    sizes = sizes_of(node.all_input_nodes[0])
    gone = _dims(_arg(node, 1, range(len(sizes))), len(sizes))
    return [dim for dim, size in enumerate(sizes) if dim in gone and _is_one(size)]


def _build_squeeze(emit: Emit, node: fx.Node, _window: Window, inputs: list[fx.Node]) -> fx.Node:
    """Squeeze explicit dimensions, so that one narrowed to a single element is kept."""
    gone = _squeezed_away(node)
    return emit(aten.squeeze.dims, inputs[0], gone) if gone else inputs[0]


def _view(node: fx.Node, window: Window) -> Needs | None:
    """A view splits and joins groups of neighbouring dimensions; a window goes through along the outermost one of a group."""
    source = node.all_input_nodes[0]
    before, after = ([size for size in sizes_of(end) if isinstance(size, int)] for end in (source, node))
    if len(before) < _ndim(source) or len(after) < _ndim(node) or 0 in before:
        return None
    inner: list[Interval | None] = [None] * len(before)
    for ins, outs in _groups(before, after):
        if not outs or all(window[dim] is None for dim in outs):
            continue
        part = window[outs[0]]
        if part is None or any(window[dim] is not None for dim in outs[1:]):
            return None
        block, unit = prod(after[dim] for dim in outs[1:]), prod(before[dim] for dim in ins[1:])
        start, end = part[0] * block, (part[1] or 0) * block
        if start % unit or end % unit:
            return None
        inner[ins[0]] = (start // unit, end // unit)
    return [(source, normalized(inner, before))]


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The dimensions, those of size 1 left out, in the smallest groups that hold the same elements before and after."""
    ins, outs = ([dim for dim, size in enumerate(sizes) if size != 1] for sizes in (before, after))
    groups: list[tuple[list[int], list[int]]] = []
    while ins:
        group = ([ins.pop(0)], [outs.pop(0)])
        while (left := prod(before[dim] for dim in group[0])) != (right := prod(after[dim] for dim in group[1])):
            group[0 if left < right else 1].append((ins if left < right else outs).pop(0))
        groups.append(group)
    return groups


def _expand(node: fx.Node, window: Window) -> Needs | None:
    source = node.all_input_nodes[0]
    return [(source, _broadcast(window, sizes_of(node), source))]


def _build_resized(emit: Emit, node: fx.Node, window: Window, inputs: list[fx.Node]) -> fx.Node:
    """Emit ``node``, which takes its sizes as an argument, for a window."""
    sizes = [size if part is None else length(part) for size, part in zip(_arg(node, 1), window, strict=True)]
    return emit(node.target, inputs[0], sizes)


def _where_sizes_are_known(needs: Callable[[fx.Node, Window], Needs | None]) -> Rule:
    """The rule of an operator that takes its sizes as an argument: not where one is symbolic."""

    def needs_if_known(node: fx.Node, window: Window) -> Needs | None:
        is_known = all(isinstance(size, int) for size in _arg(node, 1))
        return needs(node, window) if is_known and all(part is None or part[1] is not None for part in window) else None

    return Rule(needs_if_known, _build_resized)


# Several tensors ---------------------------------------------------------------------------------------------------------


def _cat(node: fx.Node, window: Window) -> Needs | None:
    if any(_ndim(source) != _ndim(node) for source in _arg(node, 0)):
        return None  # nothing, [0], may be concatenated with anything
    dim = _cat_dim(node)
    part = window[dim]
    if part is None:
        return [(source, window) for source in _arg(node, 0)]
    needs: Needs = []
    start = 0  # of the source, in the whole
    for source in _arg(node, 0):
        if part[1] is not None and part[1] <= start:
            break
        size = sizes_of(source)[dim]
        begin, end = max(part[0] - start, 0), None if part[1] is None else part[1] - start
        if not isinstance(size, int):
            # Where the sources behind it begin depends on the size; what is read of it must, too, begin at a known place.
            if part[1] is not None or source is not _arg(node, 0)[-1]:
                return None
        elif begin >= size:
            start += size
            continue
        else:
            start += size
        needs.append((source, normalized((*window[:dim], (begin, end), *window[dim + 1 :]), sizes_of(source))))
    return needs


def _cat_dim(node: fx.Node) -> int:
    dim: int = _arg(node, 1, 0)
    return dim % _ndim(node)


def _build_cat(emit: Emit, node: fx.Node, _window: Window, inputs: list[fx.Node]) -> fx.Node:
    return _contiguous(emit, inputs[0]) if len(inputs) == 1 else emit(aten.cat.default, inputs, _cat_dim(node))


def _contiguous(emit: Emit, value: fx.Node) -> fx.Node:
    """``value`` as an operator that copies would have laid it out, for the views of it."""
    meta = value.meta["val"]
    if not all(isinstance(size, int) for size in (*meta.shape, *meta.stride())) or meta.is_contiguous():
        return value
    return emit(aten.clone.default, value, memory_format=torch.contiguous_format)


def _build_pad(emit: Emit, _node: fx.Node, _window: Window, inputs: list[fx.Node]) -> fx.Node:
    return _contiguous(emit, inputs[0])


def _matmul(node: fx.Node, window: Window) -> Needs | None:
    """The windows for mm, bmm, addmm and baddbmm: batch and rows of the left operand, batch and columns of the right one."""
    *addend, left, right = (arg for arg in node.args if isinstance(arg, fx.Node))
    *batch, rows, columns = window
    operands: Needs = [(left, (*batch, rows, None)), (right, (*batch, None, columns))]
    return [*((source, _broadcast(window, sizes_of(node), source)) for source in addend), *operands]


def _build_matmul(emit: Emit, node: fx.Node, _window: Window, inputs: list[fx.Node]) -> fx.Node:
    given = iter(inputs)  # in the place of each operand, not by operand, since one may be both; a dtype may follow
    return emit(node.target, *(next(given) if isinstance(arg, fx.Node) else arg for arg in node.args), **node.kwargs)


# Reductions, padding -----------------------------------------------------------------------------------------------------


def _reduction(node: fx.Node, window: Window) -> Needs | None:
    """The windows for a reduction that keeps its dimensions; ``window`` is that of each of its results."""
    source, given = node.all_input_nodes[0], _arg(node, 1)
    if given in (None, []) or not _arg(node, 2, node.kwargs.get("keepdim", False)) or len(node.all_input_nodes) != 1:
        return None  # without dimensions: everything is one
    dims = _dims(given, _ndim(source))
    return [(source, tuple(None if dim in dims else part for dim, part in enumerate(window)))]


def _result(node: fx.Node, window: Window) -> Needs | None:
    """The rule for ``getitem(operator, i)``, where the results of the operator are equally shaped."""
    return [(node.all_input_nodes[0], window)]


def _pad(node: fx.Node, window: Window) -> Needs | None:
    source, pads = _arg(node, 0), _arg(node, 1)
    sizes = sizes_of(source)
    inner: list[Interval | None] = list(window)
    for i in range(0, len(pads), 2):
        dim, before, after = len(sizes) - 1 - i // 2, pads[i], pads[i + 1]
        part, size = window[dim], sizes[dim]
        if not isinstance(before, int) or not isinstance(after, int):
            return None
        if before == after == 0:
            continue
        if part is None or part[0] < before or (part[1] is None and after):
            return None
        end = None if part[1] is None else part[1] - before
        if end is not None and (not isinstance(size, int) or end > size):
            return None
        inner[dim] = (part[0] - before, end)
    return [(source, normalized(inner, sizes))]


_POINTWISE = Rule(_pointwise, _build_same)
_GATHERED = Rule(gathered_needs, build_gathered)
_RESIZED = _where_sizes_are_known(_view)
_SAME_DIMS = _moving(lambda node: range(_ndim(node)))

_RULES: dict[Any, Rule] = {
    aten.slice: Rule(_slice, _build_nothing),
    aten.select: Rule(_select, _build_select),
    aten.permute: _moving(_permuted),
    aten.transpose: _moving(_transposed),
    aten.t: _moving(_transposed),
    aten.unsqueeze: _moving(_unsqueezed),
    aten.squeeze: replace(_moving(_squeezed), build=_build_squeeze),
    **dict.fromkeys((aten.alias, aten.detach, aten.clone, aten.lift_fresh_copy), _SAME_DIMS),
    **dict.fromkeys((aten.view, aten._unsafe_view, aten.reshape), _RESIZED),
    aten.expand: _where_sizes_are_known(_expand),
    aten.cat: Rule(_cat, _build_cat),
    **dict.fromkeys((aten.mm, aten.addmm, aten.bmm, aten.baddbmm), Rule(_matmul, _build_matmul)),
    **dict.fromkeys((aten.mean, aten.sum, aten.amax, aten.amin, aten.var_mean), Rule(_reduction, _build_same)),
    aten.constant_pad_nd: Rule(_pad, _build_pad),
}

_GETITEM: dict[Any, Rule] = {
    **dict.fromkeys((aten.split, aten.split_with_sizes), Rule(_split_result, _build_nothing)),
    aten.unbind: Rule(_unbind_result, _build_unbind_result),
    aten.var_mean: Rule(_result, _build_same),
}
