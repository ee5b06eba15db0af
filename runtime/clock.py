"""Turn a sequence of calls into (stream, generation, step), from what the caller says or from the timesteps alone.

Along a generation the timestep moves one way. From that follows, with no help from the pipeline:

* a change against the direction of travel starts a new generation;
* the number of calls at a generation's first timestep is its number of streams (1, or 2 under serial guidance);
* the k-th call at a timestep belongs to stream k. Where a later timestep is called more often than the first, the sampler
  repeats it (Heun), and each round is a step of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from taylorseer_fx.runtime.scope import Scope

Time = tuple[float, ...]
StreamKey = tuple[str | None, int]


@dataclass(frozen=True)
class Tick:
    """One call: the stream it belongs to, the generation of that stream, and the step index within it, from 0.

    ``may_be_first``: the timestep rose at the second step. In a run with ascending timesteps it would; but so it would if the
    first step was a lone call (to warm up, say) and this is the first step of a run with descending ones. Better to execute it.
    """

    stream: StreamKey
    generation: int
    step: int
    may_be_first: bool = False


@dataclass
class _Track:
    """The calls of one scope so far."""

    generation: int = 0
    time: Time | None = None
    direction: int = 0
    step: int = 0  # of the first call at ``time``
    num_calls: int = 0  # at ``time``
    num_streams: int = 1
    may_be_first: bool = False

    def advance(self, time: Time, fixed_direction: int = 0) -> tuple[int, int]:
        """Returns (stream number, step)."""
        if self.time is None:
            self._begin(time, fixed_direction)
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
                self._begin(time, fixed_direction)
        round_, stream = divmod(self.num_calls - 1, self.num_streams)
        return stream, self.step + round_

    def _begin(self, time: Time, direction: int) -> None:
        self.generation += 1
        self.time, self.direction, self.step, self.num_calls, self.num_streams = time, direction, 0, 1, 1
        self.may_be_first = False


def _direction(before: Time, after: Time) -> int:
    moved = next((b - a for a, b in zip(before, after, strict=False) if a != b), 0.0)
    return 1 if moved > 0 else -1


@dataclass
class Clock:
    """One a backend; a track for every named scope and one for calls outside any. Never waits for a device by itself."""

    _tracks: dict[str | None, _Track] = field(default_factory=dict)

    def tick(self, scope: Scope | None, read_time: Callable[[], Time] | None) -> Tick | None:
        """Account for one call.

        Args:
            scope: what the caller said, if anything. With a step there, no timestep is read.
            read_time: reads the call's time inputs; None where the model has none.

        Returns:
            None where neither source tells the step.
        """
        name = scope.name if scope is not None else None
        track = self._tracks.setdefault(name, _Track())
        if scope is not None and scope.step is not None:
            stream, _ = track.advance((float(scope.step),), fixed_direction=1)
            return Tick((name, stream), track.generation, scope.step)
        if read_time is not None:
            stream, step = track.advance(read_time())
        elif scope is not None:  # no timestep to read: every call in the scope is a step
            stream, step = track.advance((0.0 if track.time is None else track.time[0] + 1.0,), fixed_direction=1)
        else:
            return None
        return Tick((name, stream), track.generation, step, track.may_be_first)

    def abandon(self, scope: Scope | None) -> None:
        """A call failed: what comes next in this scope is a new generation."""
        track = self._tracks.get(scope.name if scope is not None else None)
        if track is not None:
            track.time = None

    def reset(self) -> None:
        """Forget everything; generation numbers go on, so that no old state is ever taken for a new one."""
        for track in self._tracks.values():
            track.time = None
