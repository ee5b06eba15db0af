"""Schedules as lists of step indices: the paper's tables, and what holds for all of them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taylorseer_fx.runtime.schedule import Schedule

INTERVALS = st.integers(1, 12)
WARMUPS = st.integers(1, 12)
LENGTHS = st.integers(1, 120)


@pytest.mark.parametrize(
    ("interval", "warmup", "expected"),
    [
        pytest.param(5, 3, [0, 1, 2, *range(7, 50, 5)], id="official-flux"),
        pytest.param(5, 2, [0, *range(1, 50, 5)], id="official-dit"),
        pytest.param(5, 1, list(range(0, 50, 5)), id="official-hunyuan-video"),
        pytest.param(6, 3, [0, 1, 2, *range(8, 50, 6)], id="paper-flux-n6"),
        pytest.param(1, 1, list(range(50)), id="every-step"),
        pytest.param(5, 50, list(range(50)), id="all-warm-up"),
        pytest.param(100, 1, [0], id="only-the-first"),
    ],
)
def test_published_tables(interval, warmup, expected):
    """50 steps, as the official code for FLUX executes them."""
    assert Schedule(interval, warmup).full_steps_of(50) == expected


@pytest.mark.parametrize(
    ("interval", "warmup", "count"), [(5, 3, 12), (5, 2, 11), (5, 1, 10), (6, 3, 10), (4, 3, 14), (3, 3, 18)]
)
def test_published_counts(interval, warmup, count):
    assert len(Schedule(interval, warmup).full_steps_of(50)) == count


def test_defaults_are_the_official_ones():
    assert Schedule().full_steps_of(50) == [0, 1, 2, 7, 12, 17, 22, 27, 32, 37, 42, 47]


def test_describe():
    assert Schedule(5, 3).describe(13) == "FFFTTTTFTTTTF"
    assert Schedule(full_steps=(0, 3)).describe(6) == "FTTFTT"


@given(INTERVALS, WARMUPS, LENGTHS, st.integers(0, 20))
def test_a_full_step_that_was_missed_is_due(interval, warmup, last, missed):
    schedule = Schedule(interval, warmup)
    step = last + 1 + missed
    assert schedule.is_due(step, last) == any(map(schedule.is_full, range(last + 1, step + 1)))
    assert schedule.is_due(last, last) == schedule.is_full(last)


@given(INTERVALS, WARMUPS, LENGTHS)
def test_warmup_is_full(interval, warmup, length):
    schedule = Schedule(interval, warmup)
    assert all(schedule.is_full(step) for step in range(min(warmup, length)))


@given(INTERVALS, WARMUPS, LENGTHS)
def test_gaps_are_the_interval(interval, warmup, length):
    """After the warm-up every gap is the interval; none is wider, at the end of a run neither."""
    steps = Schedule(interval, warmup).full_steps_of(length)
    gaps = [b - a for a, b in pairwise(steps)]
    assert all(gap == (1 if step < warmup else interval) for gap, step in zip(gaps, steps[1:], strict=True))
    assert length - steps[-1] <= max(interval, 1)


@given(INTERVALS, WARMUPS, LENGTHS)
def test_views_of_a_schedule_agree(interval, warmup, length):
    schedule = Schedule(interval, warmup)
    text = schedule.describe(length)
    assert [letter == "F" for letter in text] == [schedule.is_full(step) for step in range(length)]
    assert [i for i, letter in enumerate(text) if letter == "F"] == schedule.full_steps_of(length)


@given(st.sets(st.integers(1, 100)))
def test_explicit_list_is_followed_to_the_letter(steps):
    """To its last gap behind its end: until there, the run may well be the one that the list is meant for."""
    steps = tuple(sorted({0, *steps}))
    gap = steps[-1] - steps[-2] if len(steps) > 1 else 1
    schedule = Schedule(full_steps=steps)
    assert tuple(schedule.full_steps_of(steps[-1] + gap)) == steps
    assert not any(schedule.is_beyond(step) for step in range(steps[-1] + gap))


@given(INTERVALS, st.integers(1, 8), st.integers(20, 60))
def test_interval_written_as_a_list_behaves_the_same(interval, warmup, length):
    """Also for the start-up rule of the derivatives, which counts from the end of the warm-up."""
    by_interval = Schedule(interval, warmup)
    by_list = Schedule(full_steps=tuple(by_interval.full_steps_of(length)))
    assert by_list.describe(length) == by_interval.describe(length)
    if interval > 1:
        assert by_list.warmup_steps == by_interval.warmup_steps == warmup


@pytest.mark.parametrize(
    ("steps", "warmup"), [((0,), 1), ((0, 1, 2, 7), 3), ((0, 2, 3), 1), ((0, 1, 2), 3), ((0, 1, 3, 4, 5), 2)]
)
def test_warmup_of_a_list_is_its_leading_run(steps, warmup):
    assert Schedule(full_steps=steps).warmup_steps == warmup


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param((0, 1, 4), "FFTTFTTFTTF", id="the-last-gap"),
        pytest.param((0, 4, 5), "FTTTFFFFFFF", id="of-one-step"),
        pytest.param((0,), "FFFFFFFFFFF", id="no-gap"),
    ],
)
def test_beyond_the_list_its_last_gap_goes_on(steps, expected):
    """A run longer than the list neither starts over nor forecasts to its end."""
    schedule = Schedule(full_steps=steps)
    assert schedule.describe(11) == expected
    first = next(step for step in range(steps[-1] + 1, 11) if schedule.is_full(step))
    assert [schedule.is_beyond(step) for step in range(11)] == [step >= first for step in range(11)]


def test_a_schedule_by_interval_has_no_end():
    assert not Schedule(5, 3).is_beyond(1000)


@pytest.mark.parametrize(
    ("schedule", "num_steps", "wanted"),
    [
        pytest.param(Schedule(5, 3), 3, "a run of 3 steps forecasts nothing: the warm-up takes 3", id="few-steps"),
        pytest.param(Schedule(full_steps=(0, 1)), 2, "full_steps names them all", id="a-list-of-all"),
        pytest.param(Schedule(5, 3), 4, "", id="one-is-forecast"),
        pytest.param(Schedule(5, 3), 1, "", id="one-step-has-nothing-to-forecast-from"),
        pytest.param(Schedule(1, 1), 20, "", id="asked-for"),
    ],
)
def test_a_run_without_forecasts_is_told(schedule, num_steps, wanted):
    text = schedule.all_full_text(num_steps)
    assert wanted in text
    assert bool(text) is bool(wanted)
