"""Distinguish the streams of a generation, and count the steps of each.

    calls:    cond uncond | cond uncond | cond | cond uncond        guidance that pauses
    stream:   0    1      | 0    1      | 0    | 0    1
    step:     0    0      | 1    1      | 2    | 3    3

A stream that was not called at some times has moved all the same, so the steps there count. Times without any call are seen
only where the caller's position is known.

A call belongs to the stream whose conditioning it is given; at the same time another graph is another stream, too. A further call
of a stream at the same time is a step of its own, since samplers do that (Heun), but for its first time, where none does. There,
and where conditioning is made anew for every call or there is none and the pattern of calls changes, calls cannot be told apart:
they may be windows of one sample. Then the stream begins anew with each, so that all are executed.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from taylorseer_fx.runtime.conditioning import Conditioning, Sample, Value, in_common, is_same_sample, still_fits
from taylorseer_fx.runtime.movement import Move, Movement, changes
from taylorseer_fx.runtime.scope import Reading
from taylorseer_fx.runtime.ticks import Site

# The most streams of a generation: more are windows that move, or the time stands still and so is none. A new one takes the
# number, and with it the buffers, of the one that was not called for longest.
MAX_STREAMS = 16


@dataclass(frozen=True)
class ForwardCall:
    """The evidence for the stream of a forward: the place and the graph that lead it, the candidates for the time, the
    conditioning, and the samples. ``position``: the step of its generation, if that is known from the caller.
    """

    leader: tuple[Site, int]
    reading: Reading
    conditioning: Conditioning = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    position: int | None = None

    @property
    def graph(self) -> tuple[Hashable, ...]:
        """The properties that calls of one stream at one time share: the place, the shapes of its inputs, and the graph."""
        site, number = self.leader
        return site, tuple(entry.shape for entry in (*self.samples, *self.conditioning.values())), number


@dataclass(eq=False)
class Stream:
    """A sequence of calls. ``conditioning`` is what all of them were given, ``made_anew``: some of it was given just once.

    ``time`` is the index of the last call's time in the generation, ``rounds`` the number of calls there. ``doubtful``: the last
    call there may have been another stream's; ``was_doubtful``: so it was at the time before.
    """

    number: int
    generation: int
    last: ForwardCall
    conditioning: Conditioning
    time: int
    step: int = 0
    rounds: int = 1
    has_moved: bool = False
    made_anew: bool = False
    doubtful: bool = False
    was_doubtful: bool = False

    def fits(self, call: ForwardCall, by_value: bool = False) -> bool:
        """Is ``call`` given all that the calls so far shared, or all of it that is known ``by_value``?"""
        known = {key: entry for key, entry in self.conditioning.items() if not by_value or isinstance(entry, Value)}
        return still_fits(known, call.conditioning)

    def may_go_on_with(self, call: ForwardCall) -> bool:
        """Could ``call`` be at the next step? With one candidate for the time, that alone decides."""
        return len(call.reading) == 1 or not is_same_sample(self.last.samples, call.samples)

    def take(self, call: ForwardCall, time: int) -> None:
        shared = in_common(self.conditioning, call.conditioning)
        self.made_anew |= len(shared) < len(self.conditioning)
        self.rounds = self.rounds + 1 if self.time == time else 1
        self.has_moved |= self.time != time
        self.conditioning, self.last, self.time = shared, call, time


@dataclass
class Streams:
    """The streams of one generation, numbered from ``generation`` on as often as one of them begins anew.

    ``time`` is the index of the present time, ``num_calls`` counts the calls there. ``repeats``: the sampler calls a stream twice
    at a time. ``say`` is called where calls cannot be told apart.
    """

    generation: int
    movement: Movement
    say: Callable[[], None]
    active: list[Stream] = field(default_factory=list)
    time: int = 0
    num_calls: int = 1
    repeats: bool = False
    _latest: Stream | None = None
    _begun_alone: Stream | None = None
    _untried: int = -1

    def begin(self, call: ForwardCall) -> Stream:
        """Begin a stream that was not called before in this generation."""
        number = len(self.active)
        if number == MAX_STREAMS:
            self.say()
            oldest = min(self.active, key=lambda stream: stream.time)
            self.active.remove(oldest)
            number, self.generation = oldest.number, self.generation + 1
        self._latest = Stream(number, self.generation, call, call.conditioning, self.time)
        self.active.append(self._latest)
        return self._latest

    def would_repeat(self, call: ForwardCall) -> bool:
        """Would ``call`` be another one of a stream that was called at this time already? Changes nothing."""
        owners, move = self._owners(call)
        return bool(owners) and move is Move.SAME

    def advance(self, call: ForwardCall) -> tuple[Stream, bool] | None:
        """The stream of a forward, and whether it is to be executed whatever the schedule; None where it goes back in time."""
        owners, move = self._owners(call)
        if move is Move.BACK:
            return None
        if not owners:
            return self._unknown(call)
        if len(owners) > 1:
            self._note_time(call)
            return self._begin_anew(owners[0], call)
        return self._next_step(owners[0], call) if move is Move.ON else self._again(owners[0], call)

    def _owners(self, call: ForwardCall) -> tuple[list[Stream], Move]:
        """The streams that a call may belong to, none for one that was not called so far, and how the time moved for them."""
        moves = {stream: self._move(stream, call) for stream in self.active if stream.fits(call)}
        moves = {stream: move for stream, move in moves.items() if move is not Move.SAME or self._is_alike(stream, call)}
        if not moves and (stream := self._told_by_what_differs(call) or self._at_its_second_step(call)) is not None:
            return [stream], Move.ON
        if not moves:
            assert self._latest is not None
            return [], self.movement.of(self._latest.last.reading, call.reading, may_begin=False)
        distances = {stream: self._distance(stream, move, call) for stream, move in moves.items()}
        nearest = [stream for stream in moves if distances[stream] == min(distances.values())]
        return nearest, moves[nearest[0]]

    def _told_by_what_differs(self, call: ForwardCall) -> Stream | None:
        """The one stream, of several, that is given at another time something that no other is. Its other inputs that are kept,
        such as the sample in a part of a model, change with every step and are no conditioning.
        """
        found = []
        for stream in self.active if len(self.active) > 1 else ():
            others = {content for other in self.active if other is not stream for content in other.conditioning.values()}
            own = {content for content in in_common(stream.conditioning, call.conditioning).values() if content not in others}
            if own and self.movement.of(stream.last.reading, call.reading, may_begin=True) is Move.ON:
                found.append(stream)
        return found[0] if len(found) == 1 else None

    def _at_its_second_step(self, call: ForwardCall) -> Stream | None:
        """The one stream whose second step the call may be. The inputs that its calls share are not known yet: values identify
        it, and shapes, if there are several streams.
        """
        several = len(self.active) > 1
        found = [
            stream
            for stream in self.active
            if not stream.has_moved
            and stream.fits(call, by_value=True)
            and self._move(stream, call) is Move.ON
            and not (several and stream.last.graph[:2] != call.graph[:2])
        ]
        return found[0] if len(found) == 1 else None

    def _move(self, stream: Stream, call: ForwardCall) -> Move:
        return self.movement.of(stream.last.reading, call.reading, stream.may_go_on_with(call))

    def _is_alike(self, stream: Stream, call: ForwardCall) -> bool:
        """Is ``call``, at the same time, one of the same graph, with the same value of all else that may be a time?"""
        others = self.movement.others
        return stream.last.graph == call.graph and others(stream.last.reading) == others(call.reading)

    def _distance(self, stream: Stream, move: Move, call: ForwardCall) -> tuple[Any, ...]:
        """The distance of a call from a stream, compared in turn: another place, shapes or graph; called at this time
        already; the number of candidates that moved.
        """
        unlike = (a != b for a, b in zip(stream.last.graph, call.graph, strict=True))
        return *unlike, move is Move.SAME, len(changes(stream.last.reading, call.reading))

    def _unknown(self, call: ForwardCall) -> tuple[Stream, bool]:
        """Place a call of no stream so far. Inputs made anew at every step, and kept, are no conditioning: where the call
        before began a stream, alone at its time, as this one would again, both are steps of one.
        """
        self._note_time(call)
        if self.num_calls == 1 and self._begun_alone is not None:
            return self._go_on(self._begun_alone, call), True
        waiting = [s for s in self.active if not s.has_moved and s.time < self.time and s.fits(call, by_value=True)]
        if len(waiting) > 1:  # several streams, and nothing in this call identifies one
            self.say()
            return self._begin_anew(waiting[0], call)
        return self.begin(call), False

    def _next_step(self, stream: Stream, call: ForwardCall) -> tuple[Stream, bool]:
        is_first_move = not self.movement.directions
        self.movement.follow(stream.last.reading, call.reading)
        self._note_time(call)
        if is_first_move and self.movement.is_untried(call.reading):
            self._untried = self.time
        stream.was_doubtful, stream.doubtful = stream.doubtful, False
        execute = stream.was_doubtful or self._untried == self.time
        return self._go_on(stream, call), execute

    def _again(self, stream: Stream, call: ForwardCall) -> tuple[Stream, bool]:
        """Place a further call at the same time."""
        self.num_calls += 1
        if not self._is_a_step(stream, call):
            return self._begin_anew(stream, call)
        self.repeats = True
        return self._go_on(stream, call), False

    def _is_a_step(self, stream: Stream, call: ForwardCall) -> bool:
        if stream.made_anew or stream.was_doubtful or stream.rounds > 1 or not (stream.has_moved or self.repeats):
            return False
        shared = in_common(stream.conditioning, call.conditioning)
        is_told = bool(shared) and len(shared) == len(stream.conditioning)
        return is_told or self.repeats or self.time == 1

    def _begin_anew(self, stream: Stream, call: ForwardCall) -> tuple[Stream, bool]:
        """Begin the stream anew with a call that may be another's, to which the buffers of this one are of no use."""
        if stream.has_moved:
            self.say()
        self.generation += 1
        stream.generation, stream.step, stream.doubtful = self.generation, 0, True
        stream.take(call, self.time)
        self._latest = stream
        return stream, True

    def _go_on(self, stream: Stream, call: ForwardCall) -> Stream:
        stream.step += self._num_steps(stream, call)
        stream.take(call, self.time)
        self._latest = stream
        return stream

    def _num_steps(self, stream: Stream, call: ForwardCall) -> int:
        """The number of steps since the stream's last call: with those it missed, as many for each time as there were calls."""
        if call.position is not None and stream.last.position is not None:
            return max(call.position - stream.last.position, 1)
        return 1 + stream.rounds * max(self.time - stream.time - 1, 0)

    def _note_time(self, call: ForwardCall) -> None:
        """Count the call: is it the first at another time?"""
        latest = self._latest
        assert latest is not None
        if self.movement.of(latest.last.reading, call.reading, may_begin=len(call.reading) == 1) is Move.SAME:
            self.num_calls += 1
            return
        self._begun_alone = latest if self.num_calls == 1 and latest.step == 0 and latest.time > 0 else None
        self.time, self.num_calls = self.time + 1, 1
