"""Turn a sequence of calls into (stream, generation, step), from what the caller says or from the timesteps alone.

Along a generation the time moves one way, be it a step index or the timestep that the model is called with. From that follows,
with no help from the pipeline:

* a change against the direction of travel starts a new generation;
* the number of forwards at a generation's first timestep is its number of streams (1, or 2 under serial guidance);
* the k-th forward at a timestep belongs to stream k. Where a later timestep is called more often than the first, the sampler
  repeats it (Heun), and each round is a step of its own.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from taylorseer_fx.runtime.forward import Forward, Role, Site, begins_forward
from taylorseer_fx.runtime.scope import Run, Scope, Time

StreamKey = tuple[str | None, int]

# A time that stands still for more forwards than this is no time: every forward would be taken for one more stream.
MAX_STREAMS = 16


@dataclass(frozen=True)
class Tick:
    """One forward: the stream it belongs to, the generation of that stream, and the step index within it, from 0.

    ``may_be_first``: the timestep rose at the second step. In a run with ascending timesteps it would; but so it would if the
    first step was a lone call (to warm up, say) and this is the first step of a run with descending ones. Better to execute it.
    """

    stream: StreamKey
    generation: int
    step: int
    may_be_first: bool = False


class Source(enum.Enum):
    """Where a track's time comes from."""

    STEP = "the step that the caller gave"
    INDEX = "the step index of the pipeline's scheduler"
    TIMESTEP = "the timestep among the model's inputs"
    COUNT = "the number of forwards"


@dataclass
class _Track:
    """The calls of one scope so far."""

    generation: int = 0
    source: Source | None = None
    time: Time | None = None
    direction: int = 0
    step: int = 0  # of the first forward at ``time``
    num_calls: int = 0  # at ``time``
    num_streams: int = 1
    may_be_first: bool = False
    run: Run | None = None
    forward: Forward | None = None
    last_forward: Forward | None = None

    def enter(self, site: Site, scope: Scope | None, read_time: Callable[[], Time] | None) -> tuple[Forward, Role]:
        """The forward that a call belongs to, and its role there."""
        if begins_forward(site, scope, self.forward, self.last_forward) or self._has_moved(site, read_time):
            self.last_forward, self.forward = self.forward, Forward(site, scope)
        assert self.forward is not None
        return self.forward, self.forward.add(site)

    def _has_moved(self, site: Site, read_time: Callable[[], Time] | None) -> bool:
        """Is a place that was not known so far called at another timestep? Hooks that make new weights each forward do that."""
        if read_time is None or self.source is not Source.TIMESTEP or self.time is None:
            return False
        if any(forward is not None and site in forward.counts for forward in (self.forward, self.last_forward)):
            return False
        time = read_time()
        return len(time) == len(self.time) and time != self.time

    def advance(self, source: Source, time: Time) -> tuple[int, int]:
        """A forward at ``time``; returns (stream number, step)."""
        ascending = source is not Source.TIMESTEP
        if self.time is None or source is not self.source:
            self._begin(source, time, ascending)
        elif time == self.time:
            self.num_calls += 1
            if self.step == 0:
                self.num_streams = self.num_calls
        else:
            direction = _direction(self.time, time)
            if self.direction in (0, direction):
                self.may_be_first = self.direction == 0 and direction > 0
                self.step += -(-self.num_calls // self.num_streams)
                self.time, self.direction, self.num_calls = time, direction, 1
            else:
                self._begin(source, time, ascending)
        round_, stream = divmod(self.num_calls - 1, self.num_streams)
        return stream, self.step + round_

    def stands_still(self) -> bool:
        return self.num_streams > MAX_STREAMS

    def forget(self, run: Run | None = None) -> None:
        """What comes next is a new generation, in ``run``."""
        self.time = self.forward = self.last_forward = None
        self.run = run

    def _begin(self, source: Source, time: Time, ascending: bool) -> None:
        self.generation += 1
        self.source, self.time, self.direction = source, time, int(ascending)
        self.step, self.num_calls, self.num_streams = 0, 1, 1
        self.may_be_first = False


def _trusted(scope: Scope | None) -> bool:
    return scope is not None and scope.run is not None and bool(scope.run.index.trusted)


def _direction(before: Time, after: Time) -> int:
    moved = next((b - a for a, b in zip(before, after, strict=False) if a != b), 0.0)
    return 1 if moved > 0 else -1


@dataclass
class Clock:
    """One a backend; a track for every named scope and one for calls outside any. Never waits for a device by itself.

    ``has_time_inputs``: some graph of the model was found to take the timestep, so that graphs which do not wait for it.
    ``num_forwards``: begun so far, in all scopes.
    """

    has_time_inputs: bool = False
    num_forwards: int = 0
    _tracks: dict[str | None, _Track] = field(default_factory=dict)

    def tick(self, site: Site, scope: Scope | None, read_time: Callable[[], Time] | None) -> tuple[Tick | None, Role]:
        """Account for one call of a graph.

        Args:
            site: the place in the model that is called.
            scope: what the caller said, if anything. With a step there, no timestep is read.
            read_time: reads the call's time inputs; None where the graph has none.

        Returns:
            The tick of the forward that the call is part of, None while nothing tells its step; and the call's role in it.
        """
        track = self._tracks.setdefault(scope.name if scope is not None else None, _Track())
        run = scope.run if scope is not None else None
        if run is not track.run:
            track.forget(run)
        forward, role = track.enter(site, scope, read_time)
        self.num_forwards += forward.num_calls == 1
        if forward.tick is None:
            forward.tick = self._tick(track, scope, read_time)
        elif read_time is not None and track.source in (Source.COUNT, Source.INDEX) and not _trusted(scope):
            # The model's first forward: the graph that takes the timestep was compiled after those that lead.
            track.source, track.time, track.direction = Source.TIMESTEP, read_time(), 0
        return forward.tick, role

    def _tick(self, track: _Track, scope: Scope | None, read_time: Callable[[], Time] | None) -> Tick | None:
        name = scope.name if scope is not None else None
        reading = self._read(track, scope, read_time)
        if reading is None:
            return None
        stream, step = track.advance(*reading)
        if track.stands_still():
            return None
        if scope is not None and scope.step is not None:
            step = scope.step
        return Tick((name, stream), track.generation, step, track.may_be_first)

    def _read(self, track: _Track, scope: Scope | None, read_time: Callable[[], Time] | None) -> tuple[Source, Time] | None:
        """The time of a forward, from the best source there is."""
        if scope is not None and scope.step is not None:
            return Source.STEP, (float(scope.step),)
        index = scope.run.index if scope is not None and scope.run is not None else None
        if index is not None and (index.trusted or not self.has_time_inputs):
            value = index.read()
            if value is not None:
                return Source.INDEX, (float(value),)
        if read_time is not None:
            time = read_time()
            if index is not None:
                index.compare(time)
            return Source.TIMESTEP, time
        if scope is None or not scope.is_stream or self.has_time_inputs:
            return None
        count = track.time[0] + 1.0 if track.time is not None and track.source is Source.COUNT else 0.0
        return Source.COUNT, (count,)

    def abandon(self, scope: Scope | None) -> None:
        """A call failed: what comes next in this scope is a new generation, with a number of its own, since states remain."""
        track = self._tracks.get(scope.name if scope is not None else None)
        if track is not None:
            track.forget(track.run)

    def forget(self, chosen: Callable[[str | None], bool] = lambda _: True) -> None:
        """Drop the tracks of the ``chosen`` scopes, whose states are freed: the next call there begins anew."""
        self._tracks = {name: track for name, track in self._tracks.items() if not chosen(name)}
