"""The parts of a tensor: a *window* is an interval, or everything, for each dimension.

    slice(%x, 1, 512, 4608)      of %x, [1, 4608, 3072], the window (None, (512, 4608), None)

Sizes may be symbolic, so an interval may be open: ``(512, None)`` goes on to the end.
"""

from collections.abc import Collection, Iterable, Sequence
from math import prod

from torch import SymInt, Tensor, fx

Interval = tuple[int, int | None]  # start and end; the end is None for the end of a dimension whose size is symbolic
Window = tuple[Interval | None, ...]  # None: the whole dimension

MAX_WINDOWS = 8  # of one node; beyond, it is computed in one piece
DENSE = 0.75  # parts that make up more than this of what spans them are computed in one piece


def whole(node: fx.Node) -> Window:
    """Everything of ``node`` (of each of its values, where it is a tuple)."""
    return (None,) * len(sizes_of(node))


def is_whole(window: Window) -> bool:
    return all(interval is None for interval in window)


def normalized(window: Iterable[Interval | None], sizes: Sequence[int | SymInt]) -> Window:
    """Write None for every interval that is the whole dimension, and for an end that is the dimension's."""
    result: list[Interval | None] = []
    for interval, size in zip(window, sizes, strict=True):
        if interval is not None:
            start, end = interval
            if isinstance(size, int):
                end = size if end is None else min(end, size)
            everything = start == 0 and (end is None or (isinstance(size, int) and end == size))
            interval = None if everything else (start, end)
        result.append(interval)
    return tuple(result)


def length(interval: Interval) -> int | None:
    """The number of elements; None up to the end of a symbolic dimension."""
    start, end = interval
    return None if end is None else end - start


def contains(outer: Window, inner: Window) -> bool:
    return all(o is None or (i is not None and o[0] <= i[0] and _end(i) <= _end(o)) for o, i in zip(outer, inner, strict=True))


def hull(windows: Collection[Window]) -> Window:
    """The smallest window that contains all."""
    return tuple(None if None in parts else _span([part for part in parts if part]) for parts in zip(*windows, strict=True))


def _span(intervals: Sequence[Interval]) -> Interval:
    end = max(map(_end, intervals))
    return min(start for start, _ in intervals), None if end == _ENDLESS else int(end)


_ENDLESS = float("inf")


def _end(interval: Interval) -> float:
    return _ENDLESS if interval[1] is None else interval[1]


def merged(windows: Collection[Window], sizes: Sequence[int | SymInt]) -> tuple[Window, ...]:
    """The windows to compute so that all of ``windows`` can be read: few, and hardly overlapping."""
    distinct = list(dict.fromkeys(windows))
    around = normalized(hull(distinct), sizes)
    dims = [dim for dim, entries in enumerate(zip(*distinct, strict=True)) if len(set(entries)) > 1]
    if len(distinct) == 1 or len(dims) != 1:
        return (around,)
    (dim,) = dims
    parts: list[Interval] = []
    for part in sorted((window[dim] or (0, None) for window in distinct), key=lambda part: (part[0], _end(part))):
        if parts and part[0] <= _end(parts[-1]):
            parts[-1] = _span([parts[-1], part])
        else:
            parts.append(part)
    lengths = [length(part) for part in parts]
    span = _end(parts[-1]) - parts[0][0]
    known = [size for size in lengths if size is not None]
    if len(parts) > MAX_WINDOWS or (len(known) == len(lengths) and sum(known) > DENSE * span):
        return (around,)
    return tuple(normalized((*around[:dim], part, *around[dim + 1 :]), sizes) for part in parts)


def sizes_of(node: fx.Node) -> Sequence[int | SymInt]:
    """The sizes of ``node``; of its first value, where it is a tuple."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    return tuple(first.shape) if isinstance(first, Tensor) else ()


def slice_window(inner: Window, dim: int, start: int, end: int | None) -> Window:
    """The window of ``x`` that is the window ``inner`` of ``x[start:end]`` along ``dim``."""
    interval = inner[dim]
    if interval is not None:
        end = None if interval[1] is None else start + interval[1]
        start = start + interval[0]
    return (*inner[:dim], (start, end), *inner[dim + 1 :])


def num_elements(sizes: Sequence[int], window: Window) -> int:
    """The number of elements in the part ``window`` of a tensor of ``sizes``."""
    parts = zip(sizes, window or (None,) * len(sizes), strict=True)
    return prod(size if part is None else (size if part[1] is None else part[1]) - part[0] for size, part in parts)


def window_text(window: Window) -> str:
    """The window as Python would slice it: ``[:, 512:4608]``; nothing for everything."""
    parts = [":" if part is None else f"{part[0] or ''}:{part[1] if part[1] is not None else ''}" for part in window]
    while parts and parts[-1] == ":":
        parts.pop()
    return f"[{', '.join(parts)}]" if parts else ""
