"""Communicate of a sharded weight only the rows that are read.

    before:  %g = wait_tensor(all_gather_into_tensor(%w, 2, "0"))       %w: rows 0 to 3d here, 3d to 6d on the other rank
             slice(%g, 0, 2d, 3d), slice(%g, 0, 5d, 6d)                 of an adaLN, a forecast step reads the gates only
    after:   %g = wait_tensor(all_gather_into_tensor(slice(%w, 0, 2d, 3d), 2, "0"))
             slice(%g, 0, 0, d), slice(%g, 0, d, 2d)

All ranks run the same graph, so in a gather each gives the rows that one of them must; in the example these are the same for
both windows, and the gathers become one. With more ranks that is more than is read. If the rows are many, the ranks that have
some then send them to all:

             wait_tensor(broadcast(slice(%w, 0, 2d, 3d), 0, "0"))       the first window, from rank 0
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import fx

from taylorseer_fx.passes.collectives import NAMESPACE
from taylorseer_fx.passes.emit import Emit, emit_window
from taylorseer_fx.passes.windows import Interval, Window, normalized, sizes_of

MAX_BROADCASTS = 4  # of one window: each takes its time, however little it sends
MIN_BYTES = 2**16  # of a window; below, more than one collective is not worth it

_ByRank = list[tuple[int, Interval]]  # ranks, and the rows of the shard of each


def is_gathered(node: fx.Node) -> bool:
    """Is it the result of an all-gather along the first dimension, waited for?"""
    gather = node.args[0] if _is(node, "wait_tensor") else None
    return isinstance(gather, fx.Node) and _is(gather, "all_gather_into_tensor") and list(gather.users) == [node]


def _is(node: fx.Node, name: str) -> bool:
    return getattr(node.target, "namespace", None) == NAMESPACE and getattr(node.target, "_opname", None) == name


def gathered_needs(node: fx.Node, window: Window) -> list[tuple[fx.Node, Window]] | None:
    """The windows of the shard; None where everything is to be gathered, or where sizes are symbolic."""
    source = _shard(node)
    sizes = sizes_of(source)
    if not all(isinstance(size, int) for size in sizes):
        return None
    parts = _parts(node, window)
    if len(parts) > 1 and not _is_broadcast(node, window):
        return None
    return [(source, normalized((rows, *window[1:]), sizes)) for _, rows in parts]


def build_gathered(emit: Emit, node: fx.Node, window: Window, inputs: list[fx.Node]) -> fx.Node:
    """The rows of ``window``, on every rank."""
    gather, parts = node.args[0], _parts(node, window)
    assert isinstance(gather, fx.Node)
    shards = [_contiguous(emit, shard) for shard in inputs]
    if _is_broadcast(node, window):
        send = getattr(torch.ops, NAMESPACE).broadcast.default
        sent = [
            emit(node.target, emit(send, shard, rank, gather.args[2])) for (rank, _), shard in zip(parts, shards, strict=True)
        ]
        return emit(torch.ops.aten.cat.default, sent) if len(sent) > 1 else sent[0]
    gathered = _once(emit, node.target, _once(emit, gather.target, shards[0], *gather.args[1:]))
    if window[0] is None:
        return gathered
    rank, num_rows = parts[0][0], int(sizes_of(shards[0])[0])
    return emit_window(emit, gathered, ((rank * num_rows, (rank + 1) * num_rows), *(None for _ in window[1:])))


def communicates_less_in_parts(node: fx.Node, windows: Sequence[Window]) -> bool:
    """Do the collectives for ``windows`` communicate no more rows than one gather of everything?"""
    rows, world_size = int(sizes_of(_shard(node))[0]), _world_size(node)
    sent = sum(_length(part) for window in windows if _is_broadcast(node, window) for _, part in _parts(node, window))
    gathered = {_parts(node, window)[0][1] for window in windows if not _is_broadcast(node, window)}
    return sent + world_size * sum(map(_length, gathered)) <= world_size * rows


def _parts(node: fx.Node, window: Window) -> _ByRank:
    """Which rows of which rank are in ``window``; for all rows, those of the first, since it is the same for each."""
    size = int(sizes_of(_shard(node))[0])
    if window[0] is None:
        return [(0, (0, size))]
    start, end = window[0][0], window[0][1] or 0
    bounds = [(rank, max(start - rank * size, 0), min(end - rank * size, size)) for rank in range(_world_size(node))]
    return [(rank, (first, last)) for rank, first, last in bounds if first < last]


def _is_broadcast(node: fx.Node, window: Window) -> bool:
    """Are its rows sent by those who have them? Where a gather of as many rows of each rank would be twice as much."""
    if window[0] is None:
        return False
    parts = _parts(node, window)
    read = sum(_length(rows) for _, rows in parts)
    gathered = _world_size(node) * (_length(parts[0][1]) if len(parts) == 1 else int(sizes_of(_shard(node))[0]))
    num_bytes = read * prod(map(int, sizes_of(node)[1:])) * node.meta["val"].dtype.itemsize
    return 2 * read < gathered and len(parts) <= MAX_BROADCASTS and num_bytes >= MIN_BYTES


def _length(rows: Interval) -> int:
    return (rows[1] or 0) - rows[0]


def _once(emit: Emit, target: Any, value: fx.Node, *rest: Any) -> fx.Node:
    """``target(value, *rest)``, which another window may have asked for before: what waits is not merged later on."""
    return next((user for user in value.users if user.target is target and user.args[1:] == rest), None) or emit(
        target, value, *rest
    )


def _contiguous(emit: Emit, value: fx.Node) -> fx.Node:
    is_contiguous = value.meta["val"].is_contiguous()
    return value if is_contiguous else emit(torch.ops.aten.clone.default, value, memory_format=torch.contiguous_format)


def _shard(node: fx.Node) -> fx.Node:
    gather = node.args[0]
    assert isinstance(gather, fx.Node)
    source = gather.args[0]
    assert isinstance(source, fx.Node)
    return source


def _world_size(node: fx.Node) -> int:
    gather = node.args[0]
    assert isinstance(gather, fx.Node)
    size = gather.args[1]
    assert isinstance(size, int)
    return size
