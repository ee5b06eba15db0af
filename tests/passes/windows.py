"""Windows for tests: random ones, and the elements that they are."""

from collections.abc import Sequence
from itertools import product

from hypothesis import strategies as st

from taylorseer_fx.passes.windows import Window

Indices = frozenset[tuple[int, ...]]


def windows_of(sizes: Sequence[int], *, empty: bool = True) -> st.SearchStrategy[Window]:
    """Windows of a tensor of ``sizes``, some of no element at all unless ``empty`` is false."""
    return st.tuples(*(intervals(size, empty) for size in sizes))


def intervals(size: int, empty: bool = True) -> st.SearchStrategy[tuple[int, int] | None]:
    ends = st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted).map(tuple)
    return st.none() | (ends if empty else ends.filter(lambda part: part[0] < part[1]) if size else st.none())


def indices(window: Window, sizes: Sequence[int]) -> Indices:
    """The elements in ``window`` of a tensor of ``sizes``."""
    return frozenset(product(*(range(size)[slice(*part or (None,))] for part, size in zip(window, sizes, strict=True))))
