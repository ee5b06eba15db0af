"""The names of places in a model, of streams, and of steps in them."""

from collections.abc import Hashable
from dataclasses import dataclass

Site = Hashable
Role = tuple[Site, int]  # a site, and how many times it was called before in the same forward
StreamKey = tuple[str | None, int]  # the name it was given, and which of that name's streams it is


@dataclass(frozen=True)
class Tick:
    """A forward: the stream it belongs to, the generation of that stream, and the step index within it, from 0.

    ``execute``: whatever the schedule, since the stream or the step is not certain. ``time``: what the step was told by, the
    largest value of each input that may be the time.
    """

    stream: StreamKey
    generation: int
    step: int
    execute: bool = False
    time: tuple[float, ...] = ()
