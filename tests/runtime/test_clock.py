"""From a sequence of calls to (stream, generation, step), by what the caller says or by the timesteps alone."""

from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taylorseer_fx.runtime.clock import Clock, Tick
from taylorseer_fx.runtime.scope import Scope, Time

DESCENDING = [900.0, 600.0, 300.0, 0.0]


def tick(clock: Clock, scope: Scope | None, read_time: Callable[[], Time] | None, site: str = "model") -> Tick | None:
    """Account for one call; of a model that is one graph unless ``site`` says otherwise."""
    return clock.tick(site, scope, read_time)[0]


def ticks(clock: Clock, times: Iterable[float], scope: Scope | None = None) -> list[Tick]:
    """Account for a call at each timestep."""
    found = [tick(clock, scope, lambda time=time: (time, time)) for time in times]
    assert None not in found
    return found


def steps(found: Sequence[Tick]) -> list[int]:
    return [tick.step for tick in found]


def streams(found: Sequence[Tick]) -> list[int]:
    return [tick.stream[1] for tick in found]


def generations(found: Sequence[Tick]) -> list[int]:
    return [tick.generation for tick in found]


def twice(times: Sequence[float]) -> list[float]:
    """Serial guidance: a cond and an uncond call a timestep."""
    return [time for time in times for _ in range(2)]


class TestOneStream:
    @pytest.mark.parametrize("times", [DESCENDING, DESCENDING[::-1]], ids=["descending", "ascending"])
    def test_steps_count_up(self, times):
        found = ticks(Clock(), times)
        assert steps(found) == [0, 1, 2, 3]
        assert streams(found) == [0] * 4
        assert len(set(generations(found))) == 1

    def test_reversal_begins_a_generation(self):
        found = ticks(Clock(), DESCENDING * 3)
        assert steps(found) == [0, 1, 2, 3] * 3
        assert generations(found) == [g for g in (1, 2, 3) for _ in range(4)]

    def test_a_shorter_generation_begins_later(self):
        """Image to image: the second generation starts in the middle of the range, still against the direction of travel."""
        found = ticks(Clock(), [*DESCENDING, 600.0, 300.0, 0.0])
        assert steps(found) == [0, 1, 2, 3, 0, 1, 2]
        assert generations(found) == [1] * 4 + [2] * 3

    def test_img2img_starting_late_has_step_zero_first(self):
        """Steps count calls of this generation, not positions in the scheduler's table."""
        assert steps(ticks(Clock(), [300.0, 200.0, 100.0])) == [0, 1, 2]

    def test_broken_off_generation(self):
        """A generation that starts over from the first timestep is recognised, wherever the last one stopped."""
        found = ticks(Clock(), [900.0, 600.0, 900.0, 600.0, 300.0])
        assert steps(found) == [0, 1, 0, 1, 2]
        assert generations(found) == [1, 1, 2, 2, 2]

    def test_uneven_timesteps(self):
        assert steps(ticks(Clock(), [1000.0, 999.5, 10.0, 9.0])) == [0, 1, 2, 3]

    def test_several_time_inputs(self):
        """Guidance beside the timestep stays the same; the one that moves tells the direction."""
        clock = Clock()
        found = [tick(clock, None, lambda t=t: (3.5, 3.5, t, t)) for t in (1.0, 0.5, 0.0, 1.0)]
        assert steps(found) == [0, 1, 2, 0]


class TestGuidance:
    def test_two_calls_a_timestep(self):
        found = ticks(Clock(), twice(DESCENDING))
        assert streams(found) == [0, 1] * 4
        assert steps(found) == [0, 0, 1, 1, 2, 2, 3, 3]

    def test_three_streams(self):
        found = ticks(Clock(), [time for time in DESCENDING for _ in range(3)])
        assert streams(found) == [0, 1, 2] * 4
        assert steps(found) == [s for s in range(4) for _ in range(3)]

    def test_guidance_that_stops_midway(self):
        """Guidance intervals: from 300 on only the first stream is called, and keeps its steps."""
        found = ticks(Clock(), [*twice(DESCENDING[:2]), *DESCENDING[2:]])
        assert streams(found) == [0, 1, 0, 1, 0, 0]
        assert steps(found) == [0, 0, 1, 1, 2, 3]

    def test_next_generation_counts_its_own_streams(self):
        """One with guidance after one without, and the other way round."""
        clock = Clock()
        assert streams(ticks(clock, DESCENDING)) == [0] * 4
        assert streams(ticks(clock, twice(DESCENDING))) == [0, 1] * 4
        assert streams(ticks(clock, DESCENDING)) == [0] * 4

    def test_generations_of_both_streams_advance_together(self):
        found = ticks(Clock(), twice(DESCENDING) * 2)
        assert generations(found) == [1] * 8 + [2] * 8


class TestRepeats:
    def test_heun_repeats_later_timesteps(self):
        """Heun calls the first timestep once and later ones twice: each call is a step of the one stream."""
        found = ticks(Clock(), [900.0, 600.0, 600.0, 300.0, 300.0, 0.0])
        assert streams(found) == [0] * 6
        assert steps(found) == [0, 1, 2, 3, 4, 5]

    def test_heun_under_guidance(self):
        """Two streams, later timesteps in two rounds: 0 1, then 0 1 0 1."""
        found = ticks(Clock(), [900.0] * 2 + [600.0] * 4 + [300.0] * 4)
        assert streams(found) == [0, 1] * 5
        assert steps(found) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]

    def test_half_a_round(self):
        """A round that one stream sat out counts for a step all the same."""
        found = ticks(Clock(), [900.0] * 2 + [600.0] * 3 + [300.0] * 2)
        assert steps(found) == [0, 0, 1, 1, 2, 3, 3]


class TestScopes:
    def test_said_steps_are_taken_as_said(self):
        """No timestep is read: on a GPU that would wait for the device."""

        def must_not_read() -> tuple[float, ...]:
            raise AssertionError("a timestep was read")

        clock = Clock()
        found = [tick(clock, Scope("cond", step), must_not_read) for step in (0, 1, 2, 7)]
        assert steps(found) == [0, 1, 2, 7]
        assert len(set(generations(found))) == 1

    def test_said_step_not_after_the_last_begins_a_generation(self):
        clock = Clock()
        found = [tick(clock, Scope("cond", step), None) for step in (0, 1, 2, 0, 1, 0)]
        assert steps(found) == [0, 1, 2, 0, 1, 0]
        assert generations(found) == [1, 1, 1, 2, 2, 3]

    def test_said_step_that_repeats_under_guidance(self):
        """Two calls of one name at step 0 are two streams."""
        clock = Clock()
        found = [tick(clock, Scope("both", step), None) for step in (0, 0, 1, 1, 2, 2)]
        assert steps(found) == [0, 0, 1, 1, 2, 2]
        assert streams(found) == [0, 1] * 3

    def test_two_names_interleaved(self):
        """Each name has a track of its own, whatever the order of calls."""
        clock = Clock()
        order = [("a", 900.0), ("b", 900.0), ("b", 600.0), ("a", 600.0), ("b", 300.0), ("b", 900.0), ("a", 300.0)]
        found = [tick(clock, Scope(name, None), lambda t=t: (t,)) for name, t in order]
        assert [(tick.stream[0], tick.step) for tick in found] == [
            ("a", 0),
            ("b", 0),
            ("b", 1),
            ("a", 1),
            ("b", 2),
            ("b", 0),
            ("a", 2),
        ]
        assert {tick.stream for tick in found} == {("a", 0), ("b", 0)}

    def test_a_name_is_not_the_nameless_stream(self):
        clock = Clock()
        ticks(clock, DESCENDING)
        (inside,) = ticks(clock, [900.0], Scope("a", None))
        assert inside.step == 0
        assert inside.stream == ("a", 0)

    def test_a_name_and_no_timestep(self):
        """A model without a time input: every call in the scope is a step."""
        clock = Clock()
        assert steps([tick(clock, Scope("a", None), None) for _ in range(4)]) == [0, 1, 2, 3]

    def test_no_source(self):
        """Neither a scope nor a timestep: the clock does not guess."""
        assert tick(Clock(), None, None) is None


class TestAbandonAndReset:
    @pytest.mark.parametrize("scope", [None, Scope("a", None)])
    def test_after_a_failed_call_a_generation_begins(self, scope):
        """Even though the timesteps go on in the same direction."""
        clock = Clock()
        before = ticks(clock, DESCENDING[:2], scope)
        clock.abandon(scope)
        after = ticks(clock, DESCENDING[2:], scope)
        assert steps(after) == [0, 1]
        assert after[0].generation > before[-1].generation

    def test_abandoning_one_name_leaves_the_others(self):
        clock = Clock()
        for name in ("a", "b"):
            ticks(clock, DESCENDING[:2], Scope(name, None))
        clock.abandon(Scope("a", None))
        assert steps(ticks(clock, [300.0], Scope("b", None))) == [2]

    def test_abandoning_what_never_was(self):
        clock = Clock()
        clock.abandon(Scope("a", None))
        assert steps(ticks(clock, DESCENDING)) == [0, 1, 2, 3]

    def test_reset(self):
        """All tracks begin anew, and nothing is kept of a name that may never come again."""
        clock = Clock()
        old = ticks(clock, DESCENDING) + ticks(clock, DESCENDING, Scope("a", None))
        clock.forget()
        assert clock == Clock(num_forwards=len(old))
        assert steps(ticks(clock, DESCENDING[2:]) + ticks(clock, DESCENDING[2:], Scope("a", None))) == [0, 1, 0, 1]

    def test_reset_between_streams_counts_anew(self):
        clock = Clock()
        ticks(clock, twice(DESCENDING))
        clock.forget()
        assert streams(ticks(clock, DESCENDING)) == [0] * 4


TIMES = st.lists(st.floats(0, 1000, allow_nan=False), min_size=2, max_size=12, unique=True)


@given(st.lists(st.tuples(st.integers(1, 4), TIMES), min_size=1, max_size=4), st.booleans())
def test_any_generations_of_any_streams(runs, ascending):
    """Whatever the number of streams and the timesteps, each generation gets its steps, in every stream.

    A generation must begin against the direction of travel, as a pipeline's next call does: at or beyond the last one's start.
    """
    clock = Clock()
    for generation, (num_streams, times) in enumerate(runs, 1):
        ordered = [2000.0, *sorted(times, reverse=True)]
        if ascending:
            ordered = [-time for time in ordered]
        found = ticks(clock, [time for time in ordered for _ in range(num_streams)])
        assert steps(found) == [step for step in range(len(ordered)) for _ in range(num_streams)]
        assert streams(found) == list(range(num_streams)) * len(ordered)
        assert set(generations(found)) == {generation}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), min_size=1, max_size=60))
def test_names_never_touch_each_other(calls):
    """Any interleaving of names gives each name what it would get alone."""
    together, alone = Clock(), {name: Clock() for name in "abc"}
    for name, time in calls:
        scope = Scope(name, None)
        assert tick(together, scope, lambda t=time: (float(t),)) == tick(alone[name], scope, lambda t=time: (float(t),))
