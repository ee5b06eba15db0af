"""Identify the time among its candidate inputs, by how they move from one step of a stream to the next.

    timestep   980 960 940 ... 20 | 980      moves one way; going back begins a generation
    guidance   3.5 3.5 3.5 ... 3.5| 5.0      never moves within a generation: is no time
    a scale    7.5 1.0 7.5 ...               alternates: the calls of one stream see no change, so it never counts

Within a generation the time is what moved at a stream's first step. If several did, one that turns back while another moves
on is no time.
"""

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from taylorseer_fx.runtime.scope import Reading, Time


class Move(enum.Enum):
    """The way that the time moved from an earlier call to this one."""

    SAME = enum.auto()
    ON = enum.auto()
    BACK = enum.auto()


def changes(before: Reading, now: Reading) -> dict[int, int]:
    """The candidates that moved, and which way: 1 for up, -1 for down."""
    return {i: _direction(a, b) for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b}


@dataclass
class Movement:
    """The candidates that are the time in the generation at hand, each with the way it moves; none before the first step."""

    directions: dict[int, int] = field(default_factory=dict)

    def of(self, before: Reading, now: Reading, may_begin: bool) -> Move:
        """Determine how the time moved between two calls. ``may_begin``: they are calls of one stream at two steps, so where
        nothing has moved so far, what differs is the time.
        """
        changed = changes(before, now)
        if not self.directions:
            return Move.ON if changed and may_begin else Move.SAME
        moved = self.directions.keys() & changed.keys()
        if not moved:
            return Move.SAME
        return Move.BACK if self._turned(changed, now) >= moved else Move.ON

    def follow(self, before: Reading, now: Reading) -> None:
        """Take note of a step from ``before`` to ``now``."""
        changed = changes(before, now)
        if not self.directions:
            self.directions = changed
        for i in self._turned(changed, now):
            del self.directions[i]

    def time_of(self, reading: Reading) -> Reading:
        """The candidates that are the time."""
        return tuple(value for i, value in enumerate(reading) if i in self.directions)

    def others(self, reading: Reading) -> tuple[Time, ...]:
        """The candidates that are not the time, which may distinguish one stream from another."""
        return tuple(value for i, value in enumerate(reading) if i not in self.directions)

    def is_untried(self, reading: Reading) -> bool:
        """May the first move yet turn out to be none? Where the first candidate stood still, another may alternate; and a
        time that rose may be the beginning of a descending run after a lone call, to warm up, say.
        """
        return (0 not in self.directions and len(reading) > 1) or 1 in self.directions.values()

    def _turned(self, changed: dict[int, int], now: Reading) -> set[int]:
        """The candidates that turned back. One value for all samples is a surer time than one that differs among them, as noise
        does; so where that turned, all did.
        """
        moved = {i for i in changed if i in self.directions}
        turned = {i for i in moved if changed[i] != self.directions[i]}
        if any(map(_is_uniform, _at(now, turned))) and not any(map(_is_uniform, _at(now, moved - turned))):
            return moved
        return turned


def _at(reading: Reading, indices: Iterable[int]) -> list[Time]:
    return [reading[i] for i in indices]


def _is_uniform(time: Time) -> bool:
    return min(time) == max(time)


def _direction(before: Time, after: Time) -> int:
    moved = next((b - a for a, b in zip(before, after, strict=False) if a != b), 0.0)
    return 1 if moved > 0 else -1
