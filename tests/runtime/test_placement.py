"""Where full steps stand when only their number is given."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taylorseer_fx.errors import ConfigError
from taylorseer_fx.runtime.placement import Placement, place

LENGTHS = st.integers(1, 120)
SPEEDUPS = st.floats(1, 200)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    length = draw(LENGTHS)
    return length, draw(st.integers(1, length))


@given(counts(), st.integers(1, 5), st.floats(1, 2), st.floats(0.1, 1))
def test_as_many_as_asked_for(count, leading, exponent, margin):
    """Whatever the parameters: increasing steps of the run, from its first."""
    num_steps, num_full = count
    steps = place(num_steps, num_full, leading, exponent, margin)
    assert len(steps) == num_full
    assert steps[0] == 0
    assert steps[-1] < num_steps
    assert all(a < b for a, b in pairwise(steps))


@given(counts())
def test_gaps_grow(count):
    """But for what rounding to whole steps takes and gives."""
    num_steps, num_full = count
    gaps = [b - a for a, b in pairwise(place(num_steps, num_full))]
    assert all(later >= earlier - 1 for i, earlier in enumerate(gaps) for later in gaps[i:])


@pytest.mark.parametrize(
    ("num_steps", "num_full", "expected"),
    [
        pytest.param(50, 10, (0, 4, 9, 14, 19, 25, 30, 36, 41, 47), id="growing"),
        pytest.param(20, 10, tuple(range(0, 20, 2)), id="even"),
        pytest.param(10, 7, (0, 1, 2, 3, 5, 7, 9), id="gaps-of-one-first"),
    ],
)
def test_default(num_steps, num_full, expected):
    assert place(num_steps, num_full) == expected


@given(LENGTHS, SPEEDUPS)
def test_number_of_full_steps(num_steps, speedup):
    """``ceil(num_steps / speedup)``: never a smaller speed-up than asked for by a step more than that."""
    schedule = Placement(speedup).for_run(num_steps)
    num_full = len(schedule.full_steps_of(num_steps))
    assert (num_full - 1) * speedup < num_steps * (1 + 1e-6)
    assert num_full * speedup >= num_steps * (1 - 1e-6)


@given(LENGTHS)
def test_a_speedup_of_one_is_the_run_in_full(num_steps):
    assert Placement(1).for_run(num_steps).full_steps_of(num_steps) == list(range(num_steps))


@given(LENGTHS, SPEEDUPS, st.integers(0, 130))
def test_what_is_left_of_a_run_is_a_run(num_steps, speedup, first):
    """A stream that begins late: as a run of the steps that are left."""
    assert Placement(speedup).for_run(num_steps, first) == Placement(speedup).for_run(max(num_steps - first, 1))


def test_a_run_of_another_length_than_known():
    """What the run tells goes first."""
    placement = Placement(5, num_steps=50)
    assert len(placement.for_run(None).full_steps_of(50)) == 10
    assert len(placement.for_run(28).full_steps_of(28)) == 6


def test_a_run_of_unknown_length():
    with pytest.raises(ConfigError) as raised:
        Placement(5).for_run(None)
    text = str(raised.value)
    assert text.startswith("num_steps must be an int of at least 1 when speedup is given, got None")
    assert "backend.attach(pipe)" in text


def test_beyond_its_end():
    """It goes on with the last gap, which is said; the steps behind the last full one are not beyond the end."""
    schedule = Placement(5).for_run(20)
    *_, before, last = schedule.full_steps_of(20)
    assert not any(map(schedule.is_beyond, range(20)))
    assert schedule.is_beyond(20)
    assert "the full steps were placed for 20 steps" in schedule.beyond_text(20)
    assert [step for step in range(20, 40) if schedule.is_full(step)] == [
        step for step in range(last, 40, last - before) if step >= 20
    ]


def test_nothing_to_say_of_short_runs():
    """In a run of two steps one of speed-up 1.5 executes both, which is what was asked for."""
    schedule = Placement(1.5).for_run(2)
    assert schedule.all_full_text(2) == ""
