"""Windows: what contains what, what is merged into one, and how they read; all against sets of indices."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taylorseer_fx.passes.windows import (
    DENSE,
    MAX_WINDOWS,
    Window,
    contains,
    hull,
    is_whole,
    length,
    merged,
    normalized,
    num_elements,
    sizes_of,
    slice_window,
    whole,
    window_text,
)
from tests.graphs import hand_made, trace
from tests.passes.windows import Indices, indices, windows_of

SIZES = (12, 30)
LONG = 100  # stands for the size of a dimension that is symbolic


@st.composite
def window_lists(draw, open_ends=False):
    """A few windows of one tensor; with ``open_ends`` some reach to the end of a dimension, whatever its size."""
    windows = draw(st.lists(windows_of(SIZES), min_size=1, max_size=10))
    if open_ends:
        ends = draw(st.lists(st.booleans(), min_size=len(windows), max_size=len(windows)))
        windows = [
            (part if part is None or not is_open else (part[0], None), rest)
            for (part, rest), is_open in zip(windows, ends, strict=True)
        ]
    return windows


class Symbolic:
    """A size that is not a number, as far as the rules look at it."""


def rows(window: Window, sizes: tuple[int, ...] = SIZES) -> Indices:
    return indices(window, sizes)


class TestNormalized:
    @given(windows_of(SIZES))
    def test_same_elements(self, window):
        assert rows(normalized(window, SIZES)) == rows(window)

    @pytest.mark.parametrize(
        ("interval", "size", "expected"),
        [
            ((0, 4), 4, None),
            ((0, 9), 4, None),
            ((0, None), 4, None),
            ((1, None), 4, (1, 4)),
            ((1, 9), 4, (1, 4)),
            ((1, 3), 4, (1, 3)),
            ((0, 0), 0, None),
            ((0, 0), 4, (0, 0)),
            (None, 4, None),
            ((0, None), Symbolic(), None),
            ((2, None), Symbolic(), (2, None)),
            ((0, 2), Symbolic(), (0, 2)),
        ],
    )
    def test_one_form_each(self, interval, size, expected):
        """None for everything, and an end wherever the size is known."""
        assert normalized([interval], [size]) == (expected,)

    def test_whole(self):
        assert is_whole(normalized([(0, 12), (0, None)], SIZES))
        assert not is_whole((None, (0, 0)))


class TestContains:
    @given(windows_of(SIZES), windows_of(SIZES))
    def test_as_sets(self, outer, inner):
        """Of windows in their one form, since everything and all of it are not told apart otherwise."""
        outer, inner = normalized(outer, SIZES), normalized(inner, SIZES)
        assert contains(outer, inner) == all(
            o is None or (i is not None and set(range(*i)) <= set(range(*o)) and o[0] <= i[0] and i[1] <= o[1])
            for o, i in zip(outer, inner, strict=True)
        )
        if contains(outer, inner):
            assert rows(inner) <= rows(outer)

    @pytest.mark.parametrize(
        ("outer", "inner", "expected"),
        [
            ((2, None), (3, None), True),
            ((2, None), (3, 8), True),
            ((2, None), (1, 8), False),
            ((2, 8), (3, None), False),
            (None, (3, None), True),
            ((0, None), None, False),
        ],
    )
    def test_open_ends(self, outer, inner, expected):
        assert contains((outer,), (inner,)) is expected


class TestHull:
    @given(window_lists())
    def test_contains_all_and_is_the_smallest(self, windows):
        around = hull(windows)
        assert all(contains(around, window) for window in windows)
        for dim, part in enumerate(around):
            starts, ends = zip(*[window[dim] or (0, SIZES[dim]) for window in windows], strict=True)
            assert (part or (0, SIZES[dim])) == (min(starts), max(ends))

    def test_open_end(self):
        assert hull([((4, 6),), ((2, None),)]) == ((2, None),)
        assert hull([((4, 6),), (None,)]) == (None,)


class TestMerged:
    @given(window_lists())
    def test_covers(self, windows):
        """Every window asked for is contained in one that is computed."""
        parts = merged(windows, SIZES)
        assert all(any(contains(part, normalized(window, SIZES)) for part in parts) for window in windows)

    @given(window_lists(open_ends=True))
    def test_covers_to_the_end(self, windows):
        parts = merged(windows, (Symbolic(), SIZES[1]))
        elements = [rows(part, (LONG, SIZES[1])) for part in parts]
        for window in windows:
            assert any(rows(window, (LONG, SIZES[1])) <= part for part in elements)

    @given(window_lists())
    def test_no_element_twice(self, windows):
        parts = merged(windows, SIZES)
        assert sum(len(rows(part)) for part in parts) == len(frozenset().union(*map(rows, parts)))

    @given(window_lists())
    def test_few_and_far_apart(self, windows):
        """Several parts differ along one dimension, are at most eight, and leave out a good deal of what spans them."""
        parts = merged(windows, SIZES)
        assert 1 <= len(parts) <= MAX_WINDOWS
        if len(parts) > 1:
            (dim,) = [dim for dim in range(len(SIZES)) if len({part[dim] for part in parts}) > 1]
            intervals = sorted(part[dim] for part in parts)
            assert sum(map(length, intervals)) <= DENSE * (intervals[-1][1] - intervals[0][0])
            assert all(before[1] < after[0] for before, after in pairwise(intervals))

    @pytest.mark.parametrize(
        ("intervals", "expected"),
        [
            pytest.param([(0, 2), (20, 22)], [(0, 2), (20, 22)], id="apart"),
            pytest.param([(0, 2), (2, 4)], [(0, 4)], id="adjacent"),
            pytest.param([(0, 3), (2, 4), (20, 21)], [(0, 4), (20, 21)], id="overlapping"),
            pytest.param([(0, 2), (20, 22), (0, 2)], [(0, 2), (20, 22)], id="twice"),
            pytest.param([(0, 2), (3, 5)], [(0, 5)], id="dense"),
            pytest.param([(0, 10), (20, 30)], [(0, 10), (20, 30)], id="two-thirds"),
            pytest.param([(0, 2), None], [None], id="with-the-whole"),
            pytest.param([(0, 15), (15, 30)], [None], id="all-together"),
            pytest.param([(3 * i, 3 * i + 1) for i in range(9)], [(0, 25)], id="too-many"),
            pytest.param([(3 * i, 3 * i + 1) for i in range(8)], [(3 * i, 3 * i + 1) for i in range(8)], id="just-as-many"),
        ],
    )
    def test_cases(self, intervals, expected):
        assert merged([(part,) for part in intervals], [30]) == tuple((part,) for part in expected)

    def test_differing_in_two_dimensions(self):
        """One piece around them all."""
        assert merged([((0, 1), (0, 1)), ((9, 10), (20, 21))], SIZES) == (((0, 10), (0, 21)),)

    @pytest.mark.parametrize(
        ("intervals", "expected"),
        [
            ([(0, 2), (9, None)], [(0, 2), (9, None)]),
            ([(0, 2), (1, None)], [None]),
            ([(3, None), (5, None)], [(3, None)]),
            ([(3, 5), (4, None), (6, 9)], [(3, None)]),
        ],
    )
    def test_open_ends(self, intervals, expected):
        assert merged([(part,) for part in intervals], [Symbolic()]) == tuple((part,) for part in expected)


class TestSliceWindow:
    @given(st.data())
    def test_window_of_a_slice(self, data):
        """The rows of ``x[start:end]`` in a window are those of ``x`` in the window that is returned."""
        start = data.draw(st.integers(0, SIZES[1]))
        end = data.draw(st.integers(start, SIZES[1]))
        (window,) = data.draw(windows_of((end - start,)))
        outer = slice_window((None, window), 1, start, end)
        assert [row for (row,) in sorted(indices((outer[1],), (SIZES[1],)))] == list(range(SIZES[1]))[start:end][
            slice(*window or (None,))
        ]

    def test_to_the_end(self):
        assert slice_window(((2, None),), 0, 3, None) == ((5, None),)
        assert slice_window((None,), 0, 3, None) == ((3, None),)
        assert slice_window(((2, 4),), 0, 3, None) == ((5, 7),)


class TestSizes:
    @given(windows_of(SIZES))
    def test_num_elements(self, window):
        assert num_elements(SIZES, window) == len(rows(window))

    def test_num_elements_of_everything(self):
        """The empty window, that of a feature whose part was not looked for, is everything."""
        assert num_elements(SIZES, ()) == 12 * 30
        assert num_elements(SIZES, ((4, None), None)) == 8 * 30

    def test_length(self):
        assert (length((3, 7)), length((3, None))) == (4, None)

    def test_of_nodes(self):
        """A tuple has the sizes of its first value; what is no tensor has none."""

        def build(emit, x):
            return [emit(torch.ops.aten.var_mean.correction, x, [1], keepdim=True), emit(torch.ops.aten.exp.default, x)]

        var_mean, exp = hand_made(build, (4, 5)).graph.find_nodes(op="output")[0].args[0]
        assert (sizes_of(var_mean), whole(var_mean)) == ((4, 1), (None, None))
        assert (sizes_of(exp), whole(exp)) == ((4, 5), (None, None))
        symbol = trace(torch.nn.Tanh(), torch.randn(3, 4), dynamic=True).gm.graph.find_nodes(op="placeholder")[0]
        assert (sizes_of(symbol), whole(symbol)) == ((), ())


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ((), ""),
        ((None, None), ""),
        ((None, (512, 4608), None), "[:, 512:4608]"),
        (((0, 4), None, (3, None)), "[:4, :, 3:]"),
        ((None, (0, 0)), "[:, :0]"),
    ],
)
def test_window_text(window, expected):
    """As one would write it in Python."""
    assert window_text(window) == expected
