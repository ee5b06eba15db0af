"""The streams that hold buffers, for ``stats()``."""

from dataclasses import dataclass

from taylorseer_fx.runtime.buffers import num_bytes
from taylorseer_fx.runtime.state import Runtime, StreamState


@dataclass(frozen=True)
class StreamStats:
    """A stream that holds buffers.

    ``name``: as it was given, with those around it, as in "request-7/cond"; None for calls outside any block. ``step``: the
    latest that it was called at. ``buffer_bytes``: allocated now. ``idle_s``: seconds since its last block was left, or
    that of the stream around it; 0 while one is open, None outside any block.
    """

    name: str | None
    step: int
    buffer_bytes: int
    idle_s: float | None


def list_streams(runtime: Runtime) -> tuple[StreamStats, ...]:
    """All streams that hold buffers, by name; guidance streams that no name tells apart are one entry."""
    with runtime.lock:
        states: dict[str | None, list[StreamState]] = {}
        for (stream, _), state in runtime.states.items():
            states.setdefault(stream[0], []).append(state)
        entries = [_describe(runtime, name, group) for name, group in states.items()]
    return tuple(sorted(entries, key=lambda entry: entry.name or ""))


def _describe(runtime: Runtime, name: str | None, states: list[StreamState]) -> StreamStats:
    newest = max(state.generation for state in states)
    step = max(state.last_used for state in states if state.generation == newest)
    return StreamStats(name, step, sum(num_bytes(state.buffers) for state in states), runtime.uses.idle_s(name))
