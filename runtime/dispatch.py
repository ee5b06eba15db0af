"""The hot path: from the inputs of one call to the variant that runs it.

    clock -> (stream, step) -> schedule: full or forecast -> coefficients -> variant(inputs, coefficients, buffers)

Nothing here touches a graph, prints, or, after a stream's first step, allocates.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from taylorseer_fx.passes.specialize import StepKind
from taylorseer_fx.runtime.buffers import Argument, BufferLayout, num_bytes
from taylorseer_fx.runtime.clock import Clock, StreamKey, Tick, Time
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.runtime.scope import ScopeVariable
from taylorseer_fx.runtime.weights import formed_after, reciprocal_gaps, taylor_weights

BoxedCallable = Callable[[list[Any]], Sequence[Any]]


@dataclass
class Counters:
    """What a backend did so far."""

    calls: dict[StepKind, int] = field(default_factory=lambda: dict.fromkeys(StepKind, 0))
    unforecast_calls: int = 0
    compiles: int = 0
    captures: int = 0


@dataclass
class StreamState:
    """One stream on one graph, in one generation."""

    generation: int
    first_step: int
    sizes: tuple[int, ...]
    buffers: list[Tensor]
    last_full: int = 0
    formed: int = -1


@dataclass
class Runtime:
    """What the graphs of one backend share."""

    schedule: Schedule
    order: int
    notify: Callable[[str, str], None]
    clock: Clock = field(default_factory=Clock)
    scopes: ScopeVariable = field(default_factory=ScopeVariable)
    counters: Counters = field(default_factory=Counters)
    states: dict[tuple[StreamKey, int], StreamState] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def buffer_bytes(self) -> int:
        """Allocated now, over all streams."""
        return sum(num_bytes(state.buffers) for state in self.states.values())

    def reset(self) -> None:
        """Free all buffers and forget all streams."""
        with self.lock:
            self.states.clear()
            self.clock.reset()


@dataclass(frozen=True)
class CompiledVariant:
    """A compiled step kind; ``pick`` takes its inputs from all inputs, coefficients and buffers."""

    run: BoxedCallable
    pick: Callable[[Sequence[Any]], Sequence[Any]]


def picker(kept: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """The items at ``kept``, as a sequence whatever their number."""
    if len(kept) == 1:
        return lambda items: (items[kept[0]],)
    return itemgetter(*kept) if kept else lambda _: ()


class Dispatcher:
    """What stands for one compiled graph: called with its inputs, in torch's boxed convention (the list is emptied)."""

    _boxed_call = True

    def __init__(
        self,
        runtime: Runtime,
        graph_id: int,
        variants: dict[StepKind, CompiledVariant],
        layout: BufferLayout,
        time_inputs: Sequence[int],
        coefficient_dtype: torch.dtype,
    ) -> None:
        self._runtime, self._id, self._layout = runtime, graph_id, layout
        self._full_variant, self._forecast_variant = variants[StepKind.FULL], variants[StepKind.FORECAST]
        self._time_inputs = tuple(time_inputs)
        self._dtype, self._device = coefficient_dtype, layout.templates[0].device
        self._coefficients: dict[tuple[float, ...], Tensor] = {}

    def __call__(self, args: list[Argument]) -> Sequence[Any]:
        scope = self._runtime.scopes.get()
        try:
            with self._runtime.lock:
                tick = self._runtime.clock.tick(scope, self._time_reader(args))
                state = self._state(tick, args)
            step = tick.step - state.first_step if tick is not None else 0
            execute = self._runtime.schedule.is_full(step) or (tick is not None and tick.may_be_first)
            return self._execute(step, state, args) if execute else self._forecast(step, state, args)
        except BaseException:
            with self._runtime.lock:
                self._runtime.clock.abandon(scope)
            raise

    def _execute(self, step: int, state: StreamState, args: list[Argument]) -> Sequence[Any]:
        runtime = self._runtime
        formed = formed_after(state.formed, step, runtime.schedule.warmup_steps, runtime.order)
        gaps = self._tensor(reciprocal_gaps(runtime.order, formed, max(step - state.last_full, 1)))
        runtime.counters.calls[StepKind.FULL] += 1
        outputs = self._run(self._full_variant, args, (gaps, None), state)
        state.last_full, state.formed = step, formed
        return outputs

    def _forecast(self, step: int, state: StreamState, args: list[Argument]) -> Sequence[Any]:
        runtime = self._runtime
        weights = self._tensor(taylor_weights(runtime.order, state.formed, step - state.last_full))
        runtime.counters.calls[StepKind.FORECAST] += 1
        return self._run(self._forecast_variant, args, (None, weights), state)

    def _run(
        self, variant: CompiledVariant, args: list[Argument], coefficients: tuple[Tensor | None, ...], state: StreamState
    ) -> Sequence[Any]:
        inputs = list(variant.pick((*args, *coefficients, *state.buffers)))
        args.clear()
        return variant.run(inputs)

    def _tensor(self, values: tuple[float, ...]) -> Tensor:
        """A small tensor of coefficients. Few distinct ones exist, so each is made and copied to the device once."""
        tensor = self._coefficients.get(values)
        if tensor is None:
            with torch.inference_mode(False):
                tensor = torch.tensor(values, dtype=self._dtype, device=self._device)
            self._coefficients[values] = tensor
        return tensor

    def _time_reader(self, args: list[Argument]) -> Callable[[], Time] | None:
        if not self._time_inputs:
            return None
        return lambda: read_time([args[i] for i in self._time_inputs])

    def _state(self, tick: Tick | None, args: list[Argument]) -> StreamState:
        if tick is None:
            return self._stateless(args)
        key = (tick.stream, self._id)
        state = self._runtime.states.get(key)
        sizes = self._layout.sizes(args)
        if state is None or state.generation != tick.generation or state.sizes != sizes:
            state = self._runtime.states[key] = self._begin(tick, state, sizes, args)
        return state

    def _begin(self, tick: Tick, old: StreamState | None, sizes: tuple[int, ...], args: list[Argument]) -> StreamState:
        """A stream's first call in a generation (or after its shape changed): fresh derivatives, buffers reused if they fit."""
        states = self._runtime.states
        if tick.step > 0 and any(
            stream == tick.stream and state.generation == tick.generation for (stream, _), state in states.items()
        ):
            self._runtime.notify("change in mid-generation", _CHANGED.format(step=tick.step))
        for stream, graph_id in [key for key, state in states.items() if key[0] == tick.stream]:
            if states[stream, graph_id].generation < tick.generation and graph_id != self._id:
                del states[stream, graph_id]
        if old is not None and old.sizes == sizes:
            buffers = old.buffers
            for buffer in buffers:
                buffer.zero_()
        else:
            buffers = self._layout.allocate(args)
        return StreamState(tick.generation, tick.step, sizes, buffers)

    def _stateless(self, args: list[Argument]) -> StreamState:
        """No source tells the step: execute, into buffers that are thrown away."""
        self._runtime.counters.unforecast_calls += 1
        self._runtime.notify(
            "no step",
            "no timestep was found among the model's inputs, so nothing tells one step from the next, and every call is executed "
            "in full. Say the step yourself: `with backend.stream('name', step=i): model(...)`.",
        )
        return StreamState(0, 0, (), self._layout.allocate(args))


_CHANGED = (
    "at step {step} of a generation the calls went over to another compiled graph or to other sizes (the batch, the resolution, "
    "a dtype or the grad mode changed): the derivatives start anew, with a warm-up of full steps. Keep these constant within a "
    "generation to avoid it."
)

_MANY = 256  # elements; from here on the extremes are taken by torch, not by Python


def read_time(tensors: Sequence[Any]) -> Time:
    """Smallest and largest value of each time input: two numbers that change when any step is taken, whatever the batch."""
    if len(tensors) > 1 and all(tensor.device.type != "cpu" for tensor in tensors):  # one wait for the device, not one each
        values = torch.cat([tensor.reshape(-1).to(torch.float64) for tensor in tensors]).cpu()
        return read_time(torch.split(values, [tensor.numel() for tensor in tensors]))
    time: list[float] = []
    for tensor in tensors:
        if tensor.numel() > _MANY:
            tensor = torch.stack(torch.aminmax(tensor))
        values = tensor.reshape(-1).tolist()
        time += (max(values), min(values))
    return tuple(time)
