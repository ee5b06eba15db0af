"""The state that the graphs of one backend share: streams and their buffers, counters, the clock, and when it is freed."""

import sys
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import Tensor

from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.runtime.agreement import Agreement
from taylorseer_fx.runtime.buffers import num_bytes
from taylorseer_fx.runtime.clock import Clock
from taylorseer_fx.runtime.coefficients import History
from taylorseer_fx.runtime.cuda_graphs import CudaGraphs
from taylorseer_fx.runtime.graph_api import GraphApi
from taylorseer_fx.runtime.placement import AnySchedule
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.runtime.scope import ScopeVariable
from taylorseer_fx.runtime.stream_limits import StreamLimits, StreamUses
from taylorseer_fx.runtime.ticks import Role, StreamKey, Tick

Layout = tuple[int, tuple[int, ...]]  # the number of a graph, and the sizes that its buffers depend on
_NO_GENERATION = -1


def nothing(_: Any) -> None:
    """Do nothing."""


@dataclass
class Counters:
    """The counters of a backend since it was made."""

    calls: dict[StepKind, int] = field(default_factory=lambda: dict.fromkeys(StepKind, 0))
    unforecast_calls: int = 0
    compiles: int = 0


@dataclass
class StreamState:
    """One stream in one place of the model, in one generation; ``layout``: the graph and the sizes it was last used with.

    ``cuda_streams``: those that its buffers were used on, first the one that they were allocated on. ``turns``: how often a full
    step wrote over the oldest snapshots, less whole rounds; a generation begins with none, in the same places as the one before.
    """

    generation: int
    first_step: int
    layout: Layout
    buffers: list[Tensor]
    history: History
    cuda_streams: list[int]
    schedule: Schedule
    last_full: int = 0
    last_used: int = 0
    turns: int = 0

    def by_age(self, num_buffers: int) -> list[Tensor]:
        """The buffers of the newest snapshots first, ``num_buffers`` for each feature."""
        newest = len(self.buffers) // num_buffers * (num_buffers - self.turns)
        return self.buffers[newest:] + self.buffers[:newest]


@dataclass
class Runtime:
    """The state that the graphs of one backend share.

    Where there are captures, buffers outlive the run that they were allocated for: captures are of their addresses, so the next
    run would have to make its own. ``spare`` holds those of the run that ended last, by their place in the model, as states of no
    generation. They count as allocated. They are freed by ``reset()``, by the end of a run that did not take them, and where
    that place is called with other sizes. Where there are no captures, on a CPU say, the end of a run frees its buffers.
    """

    schedule: AnySchedule
    storage: Storage
    notify: Callable[[str, str], None]
    forecaster: str = "taylor"
    on_run: Callable[[Any], None] = nothing  # called for each run of an attached pipeline, before it begins
    on_full: "Callable[[StreamState, int], None] | None" = None  # called for each full step, once its features are stored
    limits: StreamLimits = field(default_factory=StreamLimits)
    clock: Clock = field(init=False)
    scopes: ScopeVariable = field(init=False)
    uses: StreamUses = field(init=False)
    agreement: Agreement = field(default_factory=Agreement)
    counters: Counters = field(default_factory=Counters)
    states: dict[tuple[StreamKey, Role], StreamState] = field(default_factory=dict)
    spare: dict[Role, list[StreamState]] = field(default_factory=dict)
    cuda_graphs: CudaGraphs | None = None
    last_schedule: Schedule | None = None  # of the generation that began last
    peak_buffer_bytes: int = 0
    peak_states: int = 0
    has_regions: bool = False  # in some graph compiled so far
    swept: dict[StreamKey, int] = field(default_factory=dict)  # the generation whose predecessors' states were freed
    changed: dict[StreamKey, int] = field(default_factory=dict)  # the step at which a new place was called in mid-generation
    lock: threading.RLock = field(default_factory=threading.RLock)  # reentrant: a progress bar may be collected within
    dropped: list[int] = field(default_factory=list)  # addresses of buffers that were freed, captures of which may remain

    def __post_init__(self) -> None:
        self.clock = Clock(self.notify)
        self.uses = StreamUses(self.lock, self.drop, self.drop_captures, self.notify, self.limits)
        self.scopes = ScopeVariable(self.uses.open, self.uses.close)

    def capture_with(self, api: GraphApi) -> None:
        """Run what is on devices of ``api`` by captures."""
        turns = 1 if self.storage.keeps_differences else self.storage.num_buffers  # of the full step; one capture forecasts
        self.cuda_graphs = CudaGraphs(api, self.notify, turns + 1, lambda: self.peak_states)

    def schedule_from(self, step: int) -> Schedule:
        """The schedule of a generation that begins now, at ``step`` of its run.

        Raises:
            ConfigError: it depends on the length of the run, which is not known.
        """
        scope = self.scopes.get()
        if scope is not None and scope.run is not None:
            self.last_schedule = self.schedule.for_run(scope.run.num_steps, max(step, scope.run.step))
        else:
            self.last_schedule = self.schedule.for_run(None, step)
        return self.last_schedule

    def note_peak(self) -> None:
        """Update the peaks, after every allocation of buffers."""
        self.peak_buffer_bytes = max(self.peak_buffer_bytes, self.buffer_bytes)
        self.peak_states = max(self.peak_states, len(self.states))

    @property
    def buffer_bytes(self) -> int:
        """The bytes allocated now, over all streams."""
        return sum(num_bytes(state.buffers) for state in chain(self.states.values(), *self.spare.values()))

    def reset(self) -> None:
        """Free all buffers and captures, and forget all streams."""
        with self.lock:
            self.states.clear()
            self.spare.clear()
            self.swept.clear()
            self.changed.clear()
            self.clock.forget()
            self.uses.keep(())
            self.dropped.clear()
        if self.cuda_graphs is not None:
            self.cuda_graphs.clear()

    def forget(self, scope_name: str | None, contexts: Collection[str] | None = None) -> None:
        """End the generations of a scope, whose buffers are spare then: of all scopes within it, or of ``contexts`` there."""
        with self.lock:
            if sys.exception() is None:  # else the run was broken off
                for stream in {stream for stream, _ in self.states if _within(stream[0], scope_name, contexts)}:
                    self.note_end(stream)
            self.clock.forget(lambda name: _within(name, scope_name, contexts))
            ended = self._free(lambda stream, _: _within(stream[0], scope_name, contexts))
            if ended:
                self._keep(ended)
            self.swept = {stream: n for stream, n in self.swept.items() if not _within(stream[0], scope_name, contexts)}
            self.uses.keep({stream[0] for stream, _ in self.states})

    def release(self, name: str) -> bool:
        """Free what the stream ``name`` holds, with all that is nested in it; False where there is none.

        Raises:
            ConfigError: a block of it is open.
        """
        with self.lock:
            names = self.uses.forget(lambda each: _within(each, name, None))
            for stream in {stream for stream, _ in self.states if stream[0] in names}:
                self.note_end(stream)
            self.drop(names)
        self.drop_captures()
        return bool(names)

    def drop(self, names: Collection[str]) -> None:
        """Free the buffers of the streams of these ``names``, and forget their steps. Called with the lock held."""
        freed = self._free(lambda stream, _: stream[0] in names)
        self.clock.forget(lambda name: name in names)
        self.swept = {stream: n for stream, n in self.swept.items() if stream[0] not in names}
        self.changed = {stream: n for stream, n in self.changed.items() if stream[0] not in names}
        if self.cuda_graphs is not None:
            self.dropped += [buffer.data_ptr() for state in freed.values() for buffer in state.buffers]

    def drop_captures(self) -> None:
        """Give back the captures over buffers that were dropped. Called without the lock: captures have one of their own."""
        if self.dropped and self.cuda_graphs is not None:
            with self.lock:
                addresses, self.dropped = self.dropped, []
            self.cuda_graphs.release(addresses)

    def make_room(self, needed: int) -> None:
        """Free what must go before ``needed`` bytes are allocated for the call at hand.

        Raises:
            StreamLimitError: they do not fit the budget of all streams.
        """
        if self.limits.total_bytes is not None:
            if self.buffer_bytes + needed > self.limits.total_bytes:
                self.spare.clear()
            self.uses.make_room(needed, lambda: self.buffer_bytes, self.scopes.get())

    def note_end(self, stream: StreamKey) -> None:
        """Warn if the generation of ``stream`` that ends was too short for any forecast."""
        newest = max((state.generation for (key, _), state in self.states.items() if key == stream), default=0)
        ended = [state for (key, _), state in self.states.items() if key == stream and state.generation == newest]
        if ended and all(state.first_step == 0 for state in ended):
            text = ended[0].schedule.all_full_text(1 + max(state.last_used for state in ended))
            if text:
                self.notify("all full", text)

    def sweep(self, tick: Tick) -> None:
        """Free what a stream kept from earlier generations in places that this one did not visit in its first step, and what it
        keeps for places that it no longer visits since a new one was called in mid-generation.
        """
        stream = tick.stream
        if tick.step > 0 and self.swept.get(stream) != tick.generation:
            self.swept[stream] = tick.generation
            self._free(lambda other, state: other == stream and state.generation < tick.generation)
        if stream in self.changed and tick.step != self.changed[stream]:
            changed = self.changed.pop(stream)
            self._free(lambda other, state: other == stream and state.last_used < changed)

    def take_spare(self, role: Role, layout: Layout, cuda_stream: int) -> StreamState | None:
        """Take spare buffers for a stream that begins at ``role``. Where none are of this layout, those there are freed.

        As with the allocator's memory, buffers used on one CUDA stream are reused only there, where work is in order.
        """
        spare = self.spare.get(role, [])
        for i, state in enumerate(spare):
            if state.layout == layout and state.cuda_streams == [cuda_stream]:
                return spare.pop(i)
        spare.clear()
        return None

    def _keep(self, ended: dict[tuple[StreamKey, Role], StreamState]) -> None:
        """Keep their buffers as spare, if one CUDA stream used them; but not after an error, which may be for want of memory."""
        self.spare.clear()
        if self.cuda_graphs is not None and self.cuda_graphs.num_held and sys.exception() is None:
            for (_, role), state in ended.items():
                if len(state.cuda_streams) == 1:
                    state.generation = _NO_GENERATION
                    self.spare.setdefault(role, []).append(state)

    def _free(self, chosen: Callable[[StreamKey, StreamState], bool]) -> dict[tuple[StreamKey, Role], StreamState]:
        """Take the chosen states out and return them: freed, unless the caller keeps them."""
        freed = {key: state for key, state in self.states.items() if chosen(key[0], state)}
        self.states = {key: state for key, state in self.states.items() if key not in freed}
        return freed


def _within(name: str | None, outer: str | None, contexts: Collection[str] | None) -> bool:
    if name == outer:
        return True
    prefix = f"{outer}/" if outer is not None else ""
    if name is None or not name.startswith(prefix):
        return False
    return contexts is None or name.removeprefix(prefix) in contexts
