"""From a sequence of calls to (stream, generation, step), by what the caller says or by the inputs of the calls."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taylorseer_fx.runtime.clock import Clock, GraphCall
from taylorseer_fx.runtime.conditioning import Conditioning, Value, identity_of
from taylorseer_fx.runtime.scope import Reading, Run, Scope, StepIndex
from taylorseer_fx.runtime.ticks import Tick

DESCENDING = [900.0, 600.0, 300.0, 0.0]


def given_what(name: str | None) -> Conditioning:
    """The conditioning of a call, told by a name; none at all for None."""
    return {} if name is None else {(0, 1): Value((), (name,))}


def tick(
    clock: Clock, scope: Scope | None, reading: Reading | None, prompt: str | None = None, site: str = "model"
) -> Tick | None:
    """Account for one call; of a model that is one graph unless ``site`` says otherwise."""
    read_time = None if reading is None else lambda: reading
    return clock.tick(GraphCall(site, 0, read_time, lambda: given_what(prompt)), scope)[0]


def ticks(
    clock: Clock, times: Iterable[float], scope: Scope | None = None, prompts: Sequence[str | None] = (None,)
) -> list[Tick]:
    """Account for a call at each timestep; the ``prompts`` take turns."""
    found = [tick(clock, scope, ((time, time),), prompts[i % len(prompts)]) for i, time in enumerate(times)]
    assert None not in found
    return found


@dataclass
class Said:
    """A clock, and the topics it spoke of."""

    topics: list[str] = field(default_factory=list)

    def clock(self) -> Clock:
        return Clock(lambda topic, _: self.topics.append(topic))


def steps(found: Sequence[Tick]) -> list[int]:
    return [tick.step for tick in found]


def streams(found: Sequence[Tick]) -> list[int]:
    return [tick.stream[1] for tick in found]


def generations(found: Sequence[Tick]) -> list[int]:
    return [tick.generation for tick in found]


def twice(times: Sequence[float]) -> list[float]:
    """Serial guidance: a cond and an uncond call a timestep."""
    return [time for time in times for _ in range(2)]


BOTH = ("cond", "uncond")


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


class TestCandidates:
    """Of several inputs that may be the time, those count that move from step to step of a stream."""

    def readings(self, *readings: tuple[float, ...], prompts: Sequence[str | None] = (None,)) -> list[Tick]:
        clock = Clock()
        calls = [tuple((value, value) for value in reading) for reading in readings]
        return [tick(clock, None, reading, prompts[i % len(prompts)]) for i, reading in enumerate(calls)]

    def test_a_constant_says_nothing(self):
        """Guidance beside the timestep stays the same; the one that moves tells the direction."""
        for constant_first in (True, False):
            found = self.readings(*((3.5, t) if constant_first else (t, 3.5) for t in (1.0, 0.5, 0.0, 1.0)))
            assert steps(found) == [0, 1, 2, 0]

    def test_a_constant_that_is_another_in_the_next_generation(self):
        found = self.readings((1.0, 3.5), (0.5, 3.5), (0.0, 3.5), (1.0, 5.0), (0.5, 5.0))
        assert steps(found) == [0, 1, 2, 0, 1]
        assert generations(found) == [1, 1, 1, 2, 2]

    @pytest.mark.parametrize("scale_first", [True, False])
    def test_a_scale_that_alternates_with_the_prompt(self, scale_first):
        """Embedded like a time, another in the unconditional call: each stream sees it stand still."""
        pairs = [(t, scale) for t in DESCENDING * 2 for scale in (7.5, 1.0)]
        found = self.readings(*((s, t) if scale_first else (t, s) for t, s in pairs), prompts=BOTH)
        assert steps(found) == [0, 0, 1, 1, 2, 2, 3, 3] * 2
        assert streams(found) == [0, 1] * 8

    def test_two_times_at_once(self):
        """Where a step starts and where it ends."""
        found = self.readings(*zip([3.0, 2.0, 1.0] * 2, [2.0, 1.0, 0.0] * 2, strict=True))
        assert steps(found) == [0, 1, 2] * 2

    def test_a_second_time_that_stays_where_it_is_for_a_while(self):
        found = self.readings((3.0, 1.0), (2.0, 1.0), (1.0, 0.5), (0.0, 0.0), (3.0, 1.0))
        assert steps(found) == [0, 1, 2, 3, 0]

    def test_what_turns_back_while_another_moves_on_is_no_time(self):
        """Extremes of noise wander; the timestep does not."""
        clock = Clock()
        noise = [(2.0, -1.0), (2.1, -0.9), (1.9, -1.2), (2.4, -1.1)]
        found = [tick(clock, None, (extremes, (t, t))) for extremes, t in zip(noise * 2, DESCENDING * 2, strict=True)]
        assert steps(found) == [0, 1, 2, 3] * 2

    def test_noise_that_happens_to_move_one_way(self):
        """A generation ends where the timestep turns back, although the noise moves on."""
        clock = Clock()
        noise = [(float(i), float(-i)) for i in range(8)]
        found = [tick(clock, None, (extremes, (t, t))) for extremes, t in zip(noise, DESCENDING * 2, strict=True)]
        assert steps(found) == [0, 1, 2, 3] * 2

    def test_a_time_a_frame(self):
        """The frames of a video at times of their own, beside a constant rate of frames."""
        clock = Clock()
        found = [tick(clock, None, ((t + 50, t), (24.0, 24.0))) for t in DESCENDING * 2]
        assert steps(found) == [0, 1, 2, 3] * 2


class TestGuidance:
    def test_two_calls_a_timestep(self):
        found = ticks(Clock(), twice(DESCENDING), prompts=BOTH)
        assert streams(found) == [0, 1] * 4
        assert steps(found) == [0, 0, 1, 1, 2, 2, 3, 3]

    def test_three_streams(self):
        found = ticks(Clock(), [time for time in DESCENDING for _ in range(3)], prompts="abc")
        assert streams(found) == [0, 1, 2] * 4
        assert steps(found) == [s for s in range(4) for _ in range(3)]

    def test_the_order_of_calls_may_change(self):
        found = ticks(Clock(), twice(DESCENDING), prompts="abba")
        assert streams(found) == [0, 1, 1, 0] * 2
        assert steps(found) == [0, 0, 1, 1, 2, 2, 3, 3]

    def test_next_generation_counts_its_own_streams(self):
        """One with guidance after one without, and the other way round."""
        clock = Clock()
        assert streams(ticks(clock, DESCENDING, prompts="a")) == [0] * 4
        assert streams(ticks(clock, twice(DESCENDING), prompts="ab")) == [0, 1] * 4
        assert streams(ticks(clock, DESCENDING, prompts="b")) == [0] * 4

    def test_generations_of_both_streams_advance_together(self):
        found = ticks(Clock(), twice(DESCENDING) * 2, prompts=BOTH)
        assert generations(found) == [1] * 8 + [2] * 8

    def test_two_graphs_at_a_time(self):
        """A model called with a layer left out, on the same inputs, and a control model beside another: other streams."""
        clock = Clock()
        calls = [GraphCall("model", n, lambda t=t: ((t, t),), lambda: given_what("a")) for t in DESCENDING for n in (0, 1)]
        found = [clock.tick(call, None)[0] for call in calls]
        assert streams(found) == [0, 1] * 4
        assert steps(found) == [0, 0, 1, 1, 2, 2, 3, 3]

    def test_a_graph_compiled_anew_goes_on(self):
        """At the next timestep, for other sizes, say: the stream is the same, under whatever number its inputs are."""
        clock, calls = Clock(), []
        for number, time in enumerate(DESCENDING):
            conditioning = {(number, number): Value((), ("a",))}
            calls.append(GraphCall("model", number, lambda t=time: ((t, t),), lambda c=conditioning: c))
        assert steps([clock.tick(call, None)[0] for call in calls]) == [0, 1, 2, 3]

    def test_another_model_takes_over(self):
        """As where high and low noise have a model each."""
        clock = Clock()
        found = [tick(clock, None, ((t, t),), "a", site) for t, site in zip(DESCENDING, "ABBB", strict=True)]
        assert steps(found) == [0, 1, 2, 3]
        assert streams(found) == [0] * 4


class TestAlike:
    """Calls that nothing tells apart are all executed, and begin anew, so that none is forecast from another's."""

    def alike(self, times: Sequence[float], *prompts: str | None) -> tuple[list[Tick], list[str]]:
        said = Said()
        return ticks(said.clock(), times, prompts=prompts or (None,)), said.topics

    @pytest.mark.parametrize("prompt", [None, "same"])
    @pytest.mark.parametrize("num_calls", [2, 3, 5])
    def test_several_from_the_first_step_on(self, prompt, num_calls):
        """Windows of one sample: with the same prompt, or in a model without."""
        found, topics = self.alike([time for time in DESCENDING for _ in range(num_calls)], prompt)
        assert all(tick.execute for tick in found[1:])
        assert set(topics) == {"calls that look alike"}

    def test_late_windows(self):
        found, topics = self.alike([*DESCENDING[:2], *twice(DESCENDING[2:])])
        assert [tick.execute for tick in found[2:]] == [False, True, True, True]
        assert topics

    def test_three_windows_from_the_second_step_on(self):
        """No sampler calls three times."""
        found, topics = self.alike([900.0, *[600.0] * 3, *[300.0] * 3])
        assert [tick.execute for tick in found] == [False, False, False, True, True, True, True]
        assert topics

    def test_conditioning_made_anew(self):
        """Every call with tensors of its own that are gone afterwards: one call a step is no doubt, two are."""

        def found(times: Sequence[float]) -> list[Tick]:
            clock = Clock()
            calls = [GraphCall("m", 0, lambda t=t: ((t, t),), lambda: {(0, 1): identity_of(torch.zeros(1))}) for t in times]
            return [clock.tick(call, None)[0] for call in calls]

        assert steps(found(DESCENDING * 2)) == [0, 1, 2, 3] * 2
        assert not any(tick.execute for tick in found(DESCENDING)[1:])
        assert all(tick.execute or tick.step == 0 for tick in found([*DESCENDING[:2], *twice(DESCENDING[2:])])[3:])
        assert all(tick.execute or tick.step == 0 for tick in found(twice(DESCENDING))[1:])

    def test_a_lone_call_before_is_no_worry(self):
        """To warm up, at the timestep that the generation begins with: it begins anew, and nothing is said."""
        found, topics = self.alike([900.0, *DESCENDING])
        assert steps(found) == [0, 0, 1, 2, 3]
        assert found[0].generation < found[1].generation
        assert not topics

    def test_given_anew_at_every_step(self):
        """And held on to: after two steps it is seen to be no conditioning."""
        found, topics = self.alike([*DESCENDING, -300.0], *"abcde")
        assert steps(found) == [0, 0, 1, 2, 3]
        assert streams(found) == [0, 1, 1, 1, 1]
        assert not topics

    def test_too_many_to_keep(self):
        """Windows that move for ever take over the places of those that were not called for longest."""
        clock = Clock()
        prompts = [f"{step} {window}" for step in range(4) for window in range(7)]
        found = ticks(clock, [time for time in DESCENDING for _ in range(7)], prompts=prompts)
        assert max(streams(found)) < 16
        assert len({(tick.stream, tick.generation) for tick in found}) == len(found)


class TestRepeats:
    @pytest.mark.parametrize("prompt", [None, "a"])
    def test_heun_repeats_later_timesteps(self, prompt):
        """Heun calls the first timestep once and later ones twice: each call is a step of the one stream."""
        found = ticks(Clock(), [900.0, 600.0, 600.0, 300.0, 300.0, 0.0], prompts=[prompt])
        assert streams(found) == [0] * 6
        assert steps(found) == [0, 1, 2, 3, 4, 5]

    def test_heun_under_guidance(self):
        """Two streams, later timesteps in two rounds: 0 1, then 0 1 0 1."""
        found = ticks(Clock(), [900.0] * 2 + [600.0] * 4 + [300.0] * 4, prompts=BOTH)
        assert streams(found) == [0, 1] * 5
        assert steps(found) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert not any(tick.execute for tick in found[2:])

    def test_timesteps_that_round_to_one(self):
        """Samplers of many steps and whole timesteps repeat some near the end."""
        found = ticks(Clock(), [900.0, 600.0, 2.0, 1.0, 1.0, 0.0, 0.0], prompts="a")
        assert steps(found) == list(range(7))


class TestPositions:
    """In an attached pipeline's run the scheduler's steps are counted, so forwards that were not seen count, too."""

    @given(st.sets(st.integers(1, 20), min_size=1), st.booleans(), st.booleans(), st.sampled_from([None, True, False]))
    def test_forwards_not_seen(self, seen, is_heun, guidance, trusted):
        """Whichever were: each has the step that the scheduler is at, be the count the time or not."""
        said, run = Said(), Run(StepIndex(0, trusted))
        clock, scope = said.clock(), Scope("pipeline", run=run, is_stream=False)
        found, positions = [], [0, *sorted(seen)]
        for position in positions:
            run.index.value = position
            time = -((position + 1) // 2) if is_heun else -position
            prompts = BOTH if guidance else "a"
            found.append([tick(clock, scope, ((float(time),) * 2,), prompt) for prompt in prompts])
        assert [{tick.step for tick in forward} for forward in found] == [{position} for position in positions]
        assert (said.topics != []) == (positions[-1] >= len(positions))
        assert set(said.topics) <= {"steps not seen"}

    def test_a_half_in_its_own_context(self):
        """It counts what it missed; since the other half was called, nothing is said."""
        said, run = Said(), Run(StepIndex(0))
        clock, found = said.clock(), []
        for position in range(8):
            run.index.value = position
            for name in BOTH if position not in (2, 3, 4) else BOTH[:1]:
                outer = Scope("pipeline", run=run, is_stream=False)
                found.append(tick(clock, Scope(name).inside(outer), ((-float(position),) * 2,)))
        assert steps([tick for tick in found if tick.stream[0] == "pipeline/uncond"]) == [0, 1, 5, 6, 7]
        assert not said.topics


class TestScopes:
    def test_said_steps_are_taken_as_said(self):
        """No timestep is read: on a GPU that would wait for the device."""

        def must_not_read() -> Reading:
            raise AssertionError("a timestep was read")

        clock = Clock()
        found = [clock.tick(GraphCall("m", 0, must_not_read), Scope("cond", step))[0] for step in (0, 1, 2, 7)]
        assert steps(found) == [0, 1, 2, 7]
        assert len(set(generations(found))) == 1

    def test_said_step_not_after_the_last_begins_a_generation(self):
        clock = Clock()
        found = [tick(clock, Scope("cond", step), None) for step in (0, 1, 2, 0, 1, 0)]
        assert steps(found) == [0, 1, 2, 0, 1, 0]
        assert generations(found) == [1, 1, 1, 2, 2, 3]

    def test_said_step_that_repeats_under_guidance(self):
        """Two calls of one name at step 0 are two streams, where their conditioning tells them apart."""
        clock = Clock()
        found = [tick(clock, Scope("both", step), None, BOTH[i % 2]) for i, step in enumerate((0, 0, 1, 1, 2, 2))]
        assert steps(found) == [0, 0, 1, 1, 2, 2]
        assert streams(found) == [0, 1] * 3

    def test_two_names_interleaved(self):
        """Each name has a track of its own, whatever the order of calls."""
        clock = Clock()
        order = [("a", 900.0), ("b", 900.0), ("b", 600.0), ("a", 600.0), ("b", 300.0), ("b", 900.0), ("a", 300.0)]
        found = [tick(clock, Scope(name, None), ((t,),)) for name, t in order]
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
        ticks(clock, twice(DESCENDING), prompts=BOTH)
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
        found = ticks(clock, [time for time in ordered for _ in range(num_streams)], prompts="abcd"[:num_streams])
        assert steps(found) == [step for step in range(len(ordered)) for _ in range(num_streams)]
        assert streams(found) == list(range(num_streams)) * len(ordered)
        assert set(generations(found)) == {generation}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), min_size=1, max_size=60))
def test_names_never_touch_each_other(calls):
    """Any interleaving of names gives each name what it would get alone."""
    together, alone = Clock(), {name: Clock() for name in "abc"}
    for name, time in calls:
        scope = Scope(name, None)
        assert tick(together, scope, ((float(time),),)) == tick(alone[name], scope, ((float(time),),))


SOME = st.lists(st.sampled_from("bcd"), max_size=3, unique=True)


@given(st.lists(SOME, min_size=2, max_size=12), st.randoms(use_true_random=False), st.integers(1, 3))
def test_guidance_of_any_shape(others, random, num_generations):
    """Whichever prompts a step calls beside one that it always calls, in whatever order: each has the steps since its first."""
    calls = []
    for step, prompts in enumerate(others):
        calls += [(float(-step), prompt) for prompt in random.sample(["a", *prompts], len(prompts) + 1)]
    clock = Clock()
    for _ in range(num_generations):
        found = [tick(clock, None, ((time, time),), prompt) for time, prompt in calls]
        for prompt in "abcd":
            times = [time for time, other in calls if other == prompt]
            mine = [tick for tick, (_, other) in zip(found, calls, strict=True) if other == prompt]
            assert steps(mine) == [times[0] - time for time in times]
            assert len({(tick.stream, tick.generation) for tick in mine}) <= 1
