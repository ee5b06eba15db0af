"""The hot path: from the inputs of one call to the variant that runs it.

    clock -> (stream, step) -> schedule: full or forecast -> coefficients -> variant(inputs, coefficients, buffers)

Nothing here touches a graph, prints, or, after a stream's first step, allocates.
"""

import sys
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from taylorseer_fx.passes.call_inputs import CallInputs
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.runtime.buffers import Argument, BufferLayout, num_bytes
from taylorseer_fx.runtime.clock import Clock, GraphCall, StreamKey, Tick
from taylorseer_fx.runtime.conditioning import read_conditioning, read_samples
from taylorseer_fx.runtime.cuda_graphs import CudaGraphs, GraphedVariant
from taylorseer_fx.runtime.forward import Role
from taylorseer_fx.runtime.graph_api import GraphApi, is_capturing, stream_reader
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.runtime.scope import Reading, ScopeVariable
from taylorseer_fx.runtime.streams import MAX_STREAMS
from taylorseer_fx.runtime.weights import DifferenceHistory, History, Row, SnapshotHistory

BoxedCallable = Callable[[list[Any]], Sequence[Any]]


@dataclass
class Counters:
    """What a backend did so far."""

    calls: dict[StepKind, int] = field(default_factory=lambda: dict.fromkeys(StepKind, 0))
    unforecast_calls: int = 0
    compiles: int = 0


@dataclass
class StreamState:
    """One stream in one place of the model, in one generation; ``layout`` tells the graph and the sizes it was last used with."""

    generation: int
    first_step: int
    layout: tuple[int, tuple[int, ...]]
    buffers: list[Tensor]
    history: History
    last_full: int = 0
    last_used: int = 0


@dataclass
class Runtime:
    """What the graphs of one backend share."""

    schedule: Schedule
    storage: Storage
    notify: Callable[[str, str], None]
    clock: Clock = field(init=False)
    scopes: ScopeVariable = field(default_factory=ScopeVariable)
    counters: Counters = field(default_factory=Counters)
    states: dict[tuple[StreamKey, Role], StreamState] = field(default_factory=dict)
    graphs: CudaGraphs | None = None
    peak_buffer_bytes: int = 0
    peak_states: int = 0
    has_regions: bool = False  # in some graph compiled so far
    swept: dict[StreamKey, int] = field(default_factory=dict)  # the generation whose predecessors' states were freed
    changed: dict[StreamKey, int] = field(default_factory=dict)  # the step at which a new place was called in mid-generation
    lock: threading.RLock = field(default_factory=threading.RLock)  # reentrant: a progress bar may be collected within

    def __post_init__(self) -> None:
        self.clock = Clock(self.notify)

    def capture_with(self, api: GraphApi) -> None:
        """Run what is on devices of ``api`` by captures."""
        turns = 1 if self.storage.keeps_differences else self.storage.order + 1
        self.graphs = CudaGraphs(api, self.notify, turns * len(StepKind), lambda: self.peak_states)

    def note_peak(self) -> None:
        """Called after every allocation of buffers."""
        self.peak_buffer_bytes = max(self.peak_buffer_bytes, self.buffer_bytes)
        self.peak_states = max(self.peak_states, len(self.states))

    @property
    def buffer_bytes(self) -> int:
        """Allocated now, over all streams."""
        return sum(num_bytes(state.buffers) for state in self.states.values())

    def reset(self) -> None:
        """Free all buffers and captures, and forget all streams."""
        with self.lock:
            self.states.clear()
            self.swept.clear()
            self.changed.clear()
            self.clock.forget()
        if self.graphs is not None:
            self.graphs.clear()

    def forget(self, scope_name: str | None, contexts: Collection[str] | None = None) -> None:
        """End the generations of a scope and free their buffers: of all scopes within it, or of the named ``contexts`` there."""
        with self.lock:
            if sys.exception() is None:  # else the run was broken off
                for stream in {stream for stream, _ in self.states if _within(stream[0], scope_name, contexts)}:
                    self.note_end(stream)
            self.clock.forget(lambda name: _within(name, scope_name, contexts))
            self._free(lambda stream, _: _within(stream[0], scope_name, contexts))
            self.swept = {stream: n for stream, n in self.swept.items() if not _within(stream[0], scope_name, contexts)}

    def note_end(self, stream: StreamKey) -> None:
        """Say so if the generation of ``stream`` that ends was too short for any forecast."""
        newest = max((state.generation for (key, _), state in self.states.items() if key == stream), default=0)
        ended = [state for (key, _), state in self.states.items() if key == stream and state.generation == newest]
        if ended and all(state.first_step == 0 for state in ended):
            text = self.schedule.all_full_text(1 + max(state.last_used for state in ended))
            if text:
                self.notify("all full", text)

    def sweep(self, tick: Tick) -> None:
        """Free what a stream kept of earlier generations in places that this one did not come by in its first step, and what it
        keeps for places that it no longer comes by since it came by a new one in mid-generation.
        """
        stream = tick.stream
        if tick.step > 0 and self.swept.get(stream) != tick.generation:
            self.swept[stream] = tick.generation
            self._free(lambda other, state: other == stream and state.generation < tick.generation)
        if stream in self.changed and tick.step != self.changed[stream]:
            del self.changed[stream]
            self._free(lambda other, state: other == stream and state.last_used < tick.step - 1)

    def _free(self, chosen: Callable[[StreamKey, StreamState], bool]) -> None:
        self.states = {key: state for key, state in self.states.items() if not chosen(key[0], state)}


def _within(name: str | None, outer: str | None, contexts: Collection[str] | None) -> bool:
    if name == outer:
        return True
    prefix = f"{outer}/" if outer is not None else ""
    if name is None or not name.startswith(prefix):
        return False
    return contexts is None or name.removeprefix(prefix) in contexts


@dataclass(frozen=True)
class GraphInfo:
    """What the runtime has to know of a compiled graph: its number, and what its inputs tell of a call."""

    number: int
    inputs: CallInputs

    def call(self, args: Sequence[Argument]) -> GraphCall:
        """What the clock is told of a call with ``args``."""
        inputs = self.inputs
        return GraphCall(
            site=id(args[inputs.weight]) if inputs.weight is not None else ("graph", self.number),
            number=self.number,
            read_time=(lambda: read_time([args[i] for i in inputs.time])) if inputs.time else None,
            read_conditioning=lambda: read_conditioning(self.number, args, inputs),
            read_samples=lambda: read_samples(args, inputs.samples),
            has_time=inputs.has_time,
        )


@dataclass(frozen=True)
class CompiledVariant:
    """A compiled step kind; ``pick`` takes its inputs from all inputs, coefficients and buffers. ``graphed``: run by captures."""

    run: BoxedCallable
    pick: Callable[[Sequence[Any]], Sequence[Any]]
    graphed: GraphedVariant | None = None


def picker(kept: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """The items at ``kept``, as a sequence whatever their number."""
    if len(kept) == 1:
        return lambda items: (items[kept[0]],)
    return itemgetter(*kept) if kept else lambda _: ()


class Observer:
    """Stands for a graph without regions: runs it as it is, but tells the clock, since it may lead a forward or take the time."""

    _boxed_call = True

    def __init__(self, runtime: Runtime, info: GraphInfo, variant: CompiledVariant, is_part: bool) -> None:
        self._runtime, self._info, self._is_part = runtime, info, is_part
        self._run = variant.graphed or variant.run

    def __call__(self, args: list[Argument]) -> Sequence[Any]:
        runtime, scope = self._runtime, self._runtime.scopes.get()
        try:
            with runtime.lock:
                runtime.clock.tick(self._info.call(args), scope, is_needed=False)
            if self._is_part and not runtime.has_regions and runtime.clock.num_forwards > 1:
                runtime.notify("no regions at all", _NO_REGIONS)
            return self._run(args)
        except BaseException:
            with runtime.lock:
                runtime.clock.abandon(scope)
            raise


class Dispatcher:
    """What stands for one compiled graph: called with its inputs, in torch's boxed convention (the list is emptied)."""

    _boxed_call = True

    def __init__(
        self,
        runtime: Runtime,
        info: GraphInfo,
        variants: dict[StepKind, CompiledVariant],
        layout: BufferLayout,
        coefficient_dtype: torch.dtype,
    ) -> None:
        self._runtime, self._info, self._layout = runtime, info, layout
        self._full_variant, self._forecast_variant = variants[StepKind.FULL], variants[StepKind.FORECAST]
        self._num_coefficients = 2 if runtime.storage.keeps_differences else 1
        self._dtype, self._device = coefficient_dtype, layout.templates[0].device
        self._coefficients: dict[tuple[int, Row], Tensor] = {}
        self._current_stream = stream_reader(self._device)

    def __call__(self, args: list[Argument]) -> Sequence[Any]:
        scope = self._runtime.scopes.get()
        try:
            with self._runtime.lock:
                tick, role = self._runtime.clock.tick(self._info.call(args), scope)
                state = self._state(tick, role, args)
            step = tick.step - state.first_step if tick is not None else 0
            execute = self._runtime.schedule.is_full(step) or (tick is not None and tick.execute)
            return self._execute(step, state, args) if execute else self._forecast(step, state, args)
        except BaseException:
            with self._runtime.lock:
                self._runtime.clock.abandon(scope)
            raise

    def _execute(self, step: int, state: StreamState, args: list[Argument]) -> Sequence[Any]:
        runtime, gap = self._runtime, max(step - state.last_full, 1)
        if runtime.schedule.is_beyond(step):
            runtime.notify("full_steps", runtime.schedule.beyond_text(step))
        history = state.history.after_full(step, gap, runtime.schedule.warmup_steps)
        runtime.counters.calls[StepKind.FULL] += 1
        outputs = self._run(self._full_variant, args, (None, history.update_coefficients(gap)), state)
        state.last_full, state.history = step, history
        if not runtime.storage.keeps_differences:  # the oldest snapshots were written over, and are the newest now
            oldest = len(state.buffers) - len(state.buffers) // (runtime.storage.order + 1)
            state.buffers = state.buffers[oldest:] + state.buffers[:oldest]
        return outputs

    def _forecast(self, step: int, state: StreamState, args: list[Argument]) -> Sequence[Any]:
        runtime = self._runtime
        weights = state.history.weights(step - state.last_full)
        runtime.counters.calls[StepKind.FORECAST] += 1
        return self._run(self._forecast_variant, args, (weights, ()), state)

    def _run(
        self, variant: CompiledVariant, args: list[Argument], coefficients: tuple[Row | None, Row], state: StreamState
    ) -> Sequence[Any]:
        """``coefficients``: weights and reciprocal gaps, as far as this kind of step is given them."""
        tensors = [self._tensor(row) if row else None for row in coefficients[: self._num_coefficients]]
        inputs = list(variant.pick((*args, *tensors, *state.buffers)))
        args.clear()
        return variant.run(inputs) if variant.graphed is None else variant.graphed(inputs, state.layout[1])

    def _tensor(self, values: Row) -> Tensor:
        """A small tensor of coefficients. Few distinct ones exist, so each is made once, for each stream of the device."""
        key = self._current_stream(), values
        tensor = self._coefficients.get(key)
        if tensor is None:
            tensor = make_coefficients(values, self._dtype, self._device)
            if not is_capturing(self._device):  # else it belongs to the caller's graph, with nothing in it until that is replayed
                self._coefficients[key] = tensor
        return tensor

    def _state(self, tick: Tick | None, role: Role, args: list[Argument]) -> StreamState:
        if tick is None:
            return self._stateless(args)
        self._runtime.sweep(tick)
        state = self._runtime.states.get((tick.stream, role))
        layout = (self._info.number, self._layout.sizes(args))
        if state is None or state.generation != tick.generation or state.layout != layout:
            state = self._runtime.states[tick.stream, role] = self._begin_or_go_on(tick, state, layout, args)
            self._runtime.note_peak()
        state.last_used = tick.step
        return state

    def _begin_or_go_on(
        self, tick: Tick, old: StreamState | None, layout: tuple[int, tuple[int, ...]], args: list[Argument]
    ) -> StreamState:
        """A stream's first call here in a generation, or one after Dynamo went over to another graph or other sizes.

        Where the buffers fit all the same, a generation goes on in them, and a new one begins with them zeroed.
        """
        fits = old is not None and (old.layout == layout or self._layout.fits(old.buffers, args))
        if old is not None and fits and old.generation == tick.generation:
            old.layout = layout
            return old
        has_begun = any(
            stream == tick.stream and state.generation == tick.generation for (stream, _), state in self._runtime.states.items()
        )
        if not has_begun and not tick.execute:  # else it is one call among several that look alike
            self._runtime.note_end(tick.stream)
        if tick.step > 0 and has_begun:
            self._runtime.notify("change in mid-generation", _CHANGED.format(step=tick.step))
            self._runtime.changed[tick.stream] = tick.step
        if old is None or not fits:
            if old is not None:
                old.buffers.clear()  # before there are new ones; should there be no room for these, nothing fits what is left
                old.layout = _NO_LAYOUT
            return self._begun(tick.generation, tick.step, layout, self._layout.allocate(args))
        for buffer in old.buffers:
            buffer.zero_()
        return self._begun(tick.generation, tick.step, layout, old.buffers)

    def _begun(self, generation: int, step: int, layout: tuple[int, tuple[int, ...]], buffers: list[Tensor]) -> StreamState:
        storage = self._runtime.storage
        history = DifferenceHistory(storage.order) if storage.keeps_differences else SnapshotHistory(storage.order)
        return StreamState(generation, step, layout, buffers, history)

    def _stateless(self, args: list[Argument]) -> StreamState:
        """No source tells the step: execute, into buffers that are thrown away."""
        self._runtime.counters.unforecast_calls += 1
        self._runtime.notify("no step", _NO_STEP)
        return self._begun(0, 0, (0, ()), self._layout.allocate(args))


_NO_LAYOUT = (-1, ())

_NO_REGIONS = (
    "the model does not compile to one graph, and after a whole forward none of its graphs holds an attention or MLP with its "
    "residual add: nothing is forecast, every call runs as plain torch.compile would. explain() lists where each graph ends."
)

_CHANGED = (
    "at step {step} of a generation the calls went over to other sizes (the batch, the resolution, a dtype changed) or to a part "
    "of the model that was not called before: the derivatives start anew, with a warm-up of full steps. Keep these constant "
    "within a generation to avoid it."
)

_NO_STEP = (
    "nothing tells one step from the next, so calls are executed in full: no timestep is among the inputs of this graph (nor of "
    f"one before it in the forward), or the timestep stood still for more than {MAX_STREAMS} forwards. Say the step yourself, "
    "`with backend.stream('name', step=i): model(...)`, or let the pipeline say it, `backend.attach(pipe)`."
)


def make_coefficients(values: Row, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``values`` on ``device``. There, each is an argument of a kernel: copying them from the host would wait for the device."""
    with torch.inference_mode(False):
        if device.type == "cpu":
            return torch.tensor(values, dtype=dtype)
        tensor = torch.empty(len(values), dtype=dtype, device=device)
        for i, value in enumerate(values):
            tensor[i].fill_(value)
        return tensor


_MANY = 256  # elements; from here on the extremes are taken by torch, not by Python


def read_time(tensors: Sequence[Any]) -> Reading:
    """Largest and smallest value of each candidate for the time: numbers that change when any step is taken, whatever the batch.

    Waits for the device once, however many of them are there.
    """
    there = [i for i, tensor in enumerate(tensors) if tensor.device.type != "cpu"]
    if len(there) > 1:
        values = torch.cat([tensors[i].reshape(-1).to(torch.float64) for i in there]).cpu()
        read = dict(zip(there, torch.split(values, [tensors[i].numel() for i in there]), strict=True))
        return read_time([read.get(i, tensor) for i, tensor in enumerate(tensors)])
    reading = []
    for tensor in tensors:
        if tensor.numel() > _MANY:
            tensor = torch.stack(torch.aminmax(tensor))
        values = tensor.reshape(-1).tolist()
        reading.append((max(values), min(values)))
    return tuple(reading)
