"""Turn a sequence of calls into (stream, generation, step), from the caller's names or from the inputs of the calls.

Along a generation the time moves one way, be it a step index or the timestep that the model is called with; a change against the
direction of travel starts a new generation. Within one, ``streams`` tells the calls apart by their conditioning.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from taylorseer_fx.errors import StreamStepError
from taylorseer_fx.runtime.conditioning import Conditioning, Sample
from taylorseer_fx.runtime.forward import Forward, begins_forward
from taylorseer_fx.runtime.movement import Movement
from taylorseer_fx.runtime.scope import Reading, Run, Scope
from taylorseer_fx.runtime.streams import MAX_STREAMS, ForwardCall, Streams
from taylorseer_fx.runtime.ticks import Role, Site, Tick
from taylorseer_fx.runtime.told_steps import ToldSteps


@dataclass(frozen=True)
class GraphCall:
    """The description of one call of a graph: the place in the model, the graph's number, and how to read the candidates
    for the time (None where it has none), the conditioning and the samples. ``has_time``: a time is among the candidates for
    certain; else forwards of a named stream are counted.
    """

    site: Site
    number: int = 0
    read_time: Callable[[], Reading] | None = None
    read_conditioning: Callable[[], Conditioning] = dict
    read_samples: Callable[[], tuple[Sample, ...]] = tuple
    has_time: bool = True


class Source(enum.Enum):
    """The source of a track's time."""

    STEP = "the step that the caller gave"
    INDEX = "the number of steps that the pipeline's scheduler made"
    TIMESTEP = "the timestep among the model's inputs"
    COUNT = "the number of forwards"


@dataclass
class _Track:
    """The calls of one scope so far."""

    generation: int = 0
    source: Source | None = None
    streams: Streams | None = None
    count: int = 0
    run: Run | None = None
    forward: Forward | None = None
    last_forward: Forward | None = None
    before: tuple[Forward | None, Forward | None] = None, None  # the two above, as they were before ``forward`` began

    def enter(self, call: GraphCall, scope: Scope | None) -> tuple[Forward, Role]:
        """The forward that a call belongs to, and its role there."""
        if begins_forward(call.site, scope, self.forward, self.last_forward) or self._has_moved(call):
            self.before = self.forward, self.last_forward
            self.last_forward, self.forward = self.forward, Forward(call.site, scope, call.number)
        assert self.forward is not None
        return self.forward, self.forward.add(call.site)

    def _has_moved(self, call: GraphCall) -> bool:
        """Is a place that was not known so far called at another timestep? Hooks that make new weights each forward do that."""
        if call.read_time is None or self.source is not Source.TIMESTEP or self.forward is None:
            return False
        if any(forward is not None and call.site in forward.counts for forward in (self.forward, self.last_forward)):
            return False
        reading = call.read_time()
        return len(reading) == len(self.forward.reading) and reading != self.forward.reading

    def advance(self, source: Source, call: ForwardCall, say: Callable[[], None]) -> Tick:
        """Account for a forward; the stream's name is left to the caller."""
        known = self.streams.advance(call) if self.streams is not None and source is self.source else None
        if known is None:
            self.generation = self.streams.generation + 1 if self.streams is not None else self.generation + 1
            self.source = source
            self.streams = Streams(self.generation, Movement({} if source is Source.TIMESTEP else {0: 1}), say)
            known = self.streams.begin(call), False
        stream, execute = known
        return Tick((None, stream.number), stream.generation, stream.step, execute)

    def take_back(self) -> None:
        """Undo the last ``enter``, whose call was refused."""
        self.forward, self.last_forward = self.before

    def repeats(self, call: ForwardCall) -> bool:
        """Was a stream of this track called with the inputs of ``call`` at this very step?"""
        return self.source is Source.STEP and self.streams is not None and self.streams.would_repeat(call)

    def stands_still(self) -> bool:
        return self.streams is not None and self.streams.num_calls > MAX_STREAMS

    def take_for_time(self, reading: Reading) -> None:
        """Take the timestep as the time, in the model's first forward: its graph was compiled after those that lead."""
        assert self.streams is not None
        self.source = Source.TIMESTEP
        self.streams.movement.directions.clear()
        for stream in self.streams.active:
            stream.last = replace(stream.last, reading=reading)

    def forget(self, run: Run | None = None) -> None:
        """Let the next call begin a new generation, in ``run``."""
        if self.streams is not None:
            self.generation = self.streams.generation
        self.streams = self.forward = self.last_forward = None
        self.before = None, None
        self.count, self.run = 0, run


def _as_call(forward: Forward, reading: Reading) -> ForwardCall:
    position = forward.scope.position if forward.scope is not None else None
    return ForwardCall((forward.leader, forward.number), reading, forward.conditioning, forward.samples, position)


def _is_trusted(scope: Scope | None) -> bool:
    return scope is not None and scope.run is not None and bool(scope.run.index.trusted)


def _nothing(_topic: str, _message: str) -> None:
    pass


@dataclass
class Clock:
    """The clock of a backend: a track per named scope and one for calls outside any. Never waits for a device by itself.

    ``has_time_inputs``: some graph of the model was found to take the timestep, so that graphs which do not wait for it.
    ``num_forwards``: begun so far, in all scopes. ``notify`` is called once if calls cannot be told apart.
    """

    notify: Callable[[str, str], None] = _nothing
    has_time_inputs: bool = False
    num_forwards: int = 0
    told: ToldSteps = field(default_factory=ToldSteps)
    _tracks: dict[str | None, _Track] = field(default_factory=dict)

    def tick(self, call: GraphCall, scope: Scope | None, is_needed: bool = True) -> tuple[Tick | None, Role]:
        """Account for one call of a graph.

        Args:
            call: the place in the model that is called, and how to read its stream and step. With a step in ``scope``,
                no timestep is read.
            scope: the caller's own stream and step, if given.
            is_needed: the tick is needed now; else it may wait for later calls of the forward.

        Returns:
            The tick of the forward that the call is part of, None while its step is not known; and the call's role in it.

        Raises:
            StreamStepError: the user's step does not follow the stream's last one. The call is not counted.
        """
        track = self._tracks.setdefault(scope.name if scope is not None else None, _Track())
        run = scope.run if scope is not None else None
        if run is not track.run:
            track.forget(run)
        before = track.forward
        forward, role = track.enter(call, scope)
        if forward is not before:
            self.num_forwards += 1
            if before is not None:
                self._settle(track, before)
        if not forward.is_settled:
            self._gather(forward, call)
            if is_needed:
                self._must_follow(track, forward)
                self._settle(track, forward)
        elif call.read_time is not None and track.source in (Source.COUNT, Source.INDEX) and not _is_trusted(scope):
            track.take_for_time(call.read_time())
        return forward.tick, role

    def _gather(self, forward: Forward, call: GraphCall) -> None:
        scope = forward.scope
        is_told = scope is not None and (scope.step is not None or (scope.is_stream and not call.has_time))
        if call.read_time is not None and not is_told and not _is_trusted(scope):
            forward.reading += call.read_time()
        forward.conditioning.update(call.read_conditioning())
        forward.samples += call.read_samples()

    def _must_follow(self, track: _Track, forward: Forward) -> None:
        scope = forward.scope
        if scope is None or scope.step is None or scope.told_by is None:
            return
        reading: Reading = ((float(scope.step),),)
        try:
            self.told.check(scope, lambda: track.repeats(_as_call(forward, reading)))
        except StreamStepError:
            track.take_back()
            self.num_forwards -= 1
            raise

    def _settle(self, track: _Track, forward: Forward) -> None:
        """Give a forward its tick, as far as its calls so far determine it."""
        scope = forward.scope
        timed = self._read(track, forward) if not forward.is_settled else None
        if timed is None:
            return
        source, reading = timed
        call = _as_call(forward, reading)
        tick = track.advance(source, call, lambda: self.notify("calls that look alike", _ALIKE))
        self.told.note(scope)
        if scope is not None and scope.run is not None and scope.run.move_to(call.position):
            self.notify("steps not seen", _NOT_SEEN.format(position=call.position))
        if source is Source.TIMESTEP and scope is not None and scope.run is not None and track.streams is not None:
            scope.run.index.compare(track.streams.movement.time_of(reading))
        forward.is_settled = True
        if not track.stands_still():
            step = scope.step if scope is not None and scope.step is not None else tick.step
            if scope is not None and scope.run is not None:
                scope.run.step = max(scope.run.step, step)
            name, time = scope.name if scope is not None else None, tuple(map(max, reading))
            forward.tick = replace(tick, stream=(name, tick.stream[1]), step=step, time=time)

    def _read(self, track: _Track, forward: Forward) -> tuple[Source, Reading] | None:
        """The time of a forward, from the best source there is."""
        scope = forward.scope
        if scope is not None and scope.step is not None:
            return Source.STEP, ((float(scope.step),),)
        index = scope.run.index if scope is not None and scope.run is not None else None
        if index is not None and index.value is not None and (index.trusted or not self.has_time_inputs):
            return Source.INDEX, ((float(index.value),),)
        if forward.reading:
            return Source.TIMESTEP, forward.reading
        if scope is None or not scope.is_stream or self.has_time_inputs:
            return None
        track.count += 1
        return Source.COUNT, ((float(track.count),),)

    def time_taken(self) -> tuple[int, ...]:
        """The indices of the candidates for the time that were seen to move in the generations at hand."""
        tracks = [track for track in self._tracks.values() if track.source is Source.TIMESTEP and track.streams is not None]
        return tuple(sorted({i for track in tracks if track.streams for i in track.streams.movement.directions}))

    def abandon(self, scope: Scope | None) -> None:
        """Note a failed call: the next one in this scope begins a generation with a number of its own, since states remain."""
        track = self._tracks.get(scope.name if scope is not None else None)
        if track is not None:
            track.forget(track.run)
        self.told.abandon(scope)

    def forget(self, chosen: Callable[[str | None], bool] = lambda _: True) -> None:
        """Drop the tracks of the ``chosen`` scopes, whose states are freed: the next call there begins anew."""
        self._tracks = {name: track for name, track in self._tracks.items() if not chosen(name)}
        self.told.forget(chosen)


_NOT_SEEN = (
    "a pipeline came to step {position} of its run, and no call of the model at the step before was seen: it ran eagerly, which "
    "is what Dynamo does with inputs that fit no compilation once its limit is reached (TORCH_LOGS=recompiles reports that), or "
    "the pipeline made none. That step is counted, and a full step that fell there is executed now."
)

_ALIKE = (
    "several calls at one timestep could not be told apart, so they run in full: their conditioning is the same, or is made anew "
    "for every call. They may be guidance, windows of one sample, or further steps. Name them, "
    "`with backend.stream('cond'): model(...)`; or attach the pipeline, `backend.attach(pipe)`; or pass the same tensors at "
    "every step."
)
