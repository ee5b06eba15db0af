"""The hot path: from the inputs of one call to the variant that runs it.

    clock -> (stream, step) -> schedule: full or forecast -> coefficients -> variant(inputs, coefficients, buffers)

Nothing here touches a graph, prints, or, after a stream's first step, allocates.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from taylorseer_fx.errors import StreamStepError
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.runtime.agreement import Position
from taylorseer_fx.runtime.buffers import Argument, BufferLayout
from taylorseer_fx.runtime.calls import CompiledVariant, GraphInfo
from taylorseer_fx.runtime.coefficients import Row
from taylorseer_fx.runtime.forecasters import begin_history
from taylorseer_fx.runtime.graph_api import cuda_stream_reader, is_capturing, keep_until_done
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.runtime.state import Layout, Runtime, StreamState
from taylorseer_fx.runtime.streams import MAX_STREAMS
from taylorseer_fx.runtime.ticks import Role, Tick


class Observer:
    """A graph without regions: runs as it is, but reports to the clock, since it may lead a forward or take the time."""

    _boxed_call = True

    def __init__(self, runtime: Runtime, info: GraphInfo, variant: CompiledVariant, is_part: bool) -> None:
        self._runtime, self._info, self._is_part = runtime, info, is_part
        self._run = variant.captured or variant.run

    def __call__(self, args: list[Argument]) -> Sequence[Any]:
        runtime, scope = self._runtime, self._runtime.scopes.get()
        try:
            with runtime.lock:
                runtime.clock.tick(self._info.call(args), scope, is_needed=False)
            if self._is_part and not runtime.has_regions and runtime.clock.num_forwards > 1:
                runtime.notify("no regions at all", _NO_REGIONS)
            return self._run(args)
        except StreamStepError:  # nothing was done yet
            raise
        except BaseException:
            with runtime.lock:
                runtime.clock.abandon(scope)
            raise


class Dispatcher:
    """A compiled graph with regions: called with its inputs, in torch's boxed convention (the list is emptied)."""

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
        self._current_stream = cuda_stream_reader(self._device)

    def __call__(self, args: list[Argument]) -> Sequence[Any]:
        scope = self._runtime.scopes.get()
        try:
            with self._runtime.lock:
                tick, role = self._runtime.clock.tick(self._info.call(args), scope)
                state = self._state(tick, role, args)
                step, execute = (0, True) if tick is None else self._due(tick, state)
            if self._runtime.dropped:
                self._runtime.drop_captures()
            if tick is not None:
                self._agree(StepKind.FULL if execute else StepKind.FORECAST, tick, state)
            return self._execute(step, state, args) if execute else self._forecast(step, state, args)
        except StreamStepError:  # nothing was done yet
            raise
        except BaseException:
            with self._runtime.lock:
                self._runtime.clock.abandon(scope)
            raise

    @staticmethod
    def _due(tick: Tick, state: StreamState) -> tuple[int, bool]:
        """The step of ``state`` and whether it is full."""
        step, last = tick.step - state.first_step, state.last_used - state.first_step
        state.last_used = tick.step
        return step, tick.execute or state.schedule.is_due(step, last)

    def _agree(self, kind: StepKind, tick: Tick, state: StreamState) -> None:
        groups = (self._full_variant if kind is StepKind.FULL else self._forecast_variant).groups
        if groups:
            position = partial(Position.of, tick, state.first_step, state.last_full, kind)
            self._runtime.agreement.require(groups, tick, position)

    def _execute(self, step: int, state: StreamState, args: list[Argument]) -> Sequence[Any]:
        runtime, gap = self._runtime, max(step - state.last_full, 1)
        if state.schedule.is_beyond(step):
            runtime.notify("full_steps", state.schedule.beyond_text(step))
        history = state.history.after_full(step, gap, state.schedule.warmup_steps)
        runtime.counters.calls[StepKind.FULL] += 1
        buffers = state.by_age(runtime.storage.num_buffers)
        outputs = self._run(self._full_variant, args, (None, history.update_coefficients(gap)), buffers, state.layout)
        state.last_full, state.history = step, history
        if not runtime.storage.keeps_differences:  # the oldest snapshots were written over, and are the newest now
            state.turns = (state.turns + 1) % runtime.storage.num_buffers
        if runtime.on_full is not None:
            runtime.on_full(state, step)
        return outputs

    def _forecast(self, step: int, state: StreamState, args: list[Argument]) -> Sequence[Any]:
        runtime = self._runtime
        by_age = state.history.forecast_coefficients(step - state.last_full)
        in_place = by_age[state.turns :] + by_age[: state.turns]
        runtime.counters.calls[StepKind.FORECAST] += 1
        return self._run(self._forecast_variant, args, (in_place, ()), state.buffers, state.layout)

    def _run(
        self,
        variant: CompiledVariant,
        args: list[Argument],
        coefficients: tuple[Row | None, Row],
        buffers: list[Tensor],
        layout: Layout,
    ) -> Sequence[Any]:
        """Run ``variant``; ``coefficients``: of the polynomial, and reciprocal gaps, as far as this kind of step takes them."""
        tensors = [self._tensor(row) if row else None for row in coefficients[: self._num_coefficients]]
        inputs = list(variant.pick((*args, *tensors, *buffers)))
        args.clear()
        return variant.run(inputs) if variant.captured is None else variant.captured(inputs, layout[1])

    def _tensor(self, values: Row) -> Tensor:
        """A small tensor of coefficients. Few distinct ones exist, so each is made once per CUDA stream."""
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
        layout, cuda_stream = (self._info.number, self._layout.sizes(args)), self._current_stream()
        if state is None:
            state = self._runtime.take_spare(role, layout, cuda_stream)
        if state is None or state.generation != tick.generation or state.layout != layout:
            state = self._runtime.states[tick.stream, role] = self._begin_or_go_on(tick, state, layout, args)
            self._runtime.note_peak()
            self._runtime.uses.note_buffers(self._runtime.scopes.get())
        if cuda_stream not in state.cuda_streams:
            state.cuda_streams.append(cuda_stream)
            keep_until_done(state.buffers)
        return state

    def _begin_or_go_on(self, tick: Tick, old: StreamState | None, layout: Layout, args: list[Argument]) -> StreamState:
        """The state for a stream's first call here in a generation, or for one after Dynamo took another graph or other sizes.

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
        schedule = self._runtime.schedule_from(tick.step)
        if old is None or not fits:
            if old is not None:
                old.buffers.clear()  # before there are new ones; should there be no room for these, nothing fits what is left
                old.layout = _NO_LAYOUT
            runtime = self._runtime
            if runtime.limits.total_bytes is not None:
                runtime.make_room(self._layout.num_bytes(args))
            buffers = self._layout.allocate(args)
            return self._begun(tick.generation, tick.step, layout, buffers, [self._current_stream()], schedule)
        for buffer in old.buffers:
            buffer.zero_()
        return self._begun(tick.generation, tick.step, layout, old.buffers, old.cuda_streams, schedule)

    def _begun(
        self,
        generation: int,
        step: int,
        layout: Layout,
        buffers: list[Tensor],
        cuda_streams: list[int],
        schedule: Schedule,
    ) -> StreamState:
        runtime = self._runtime
        history = begin_history(runtime.forecaster, runtime.storage, schedule.num_steps)
        return StreamState(generation, step, layout, buffers, history, cuda_streams, schedule, last_used=step)

    def _stateless(self, args: list[Argument]) -> StreamState:
        """The state of a call whose step is not known: it executes, into buffers that are thrown away."""
        self._runtime.counters.unforecast_calls += 1
        self._runtime.notify("no step", _NO_STEP)
        return self._begun(0, 0, (0, ()), self._layout.allocate(args), [], Schedule(interval=1))


_NO_LAYOUT = (-1, ())

_NO_REGIONS = (
    "the model does not compile to one graph, and after a whole forward none of its graphs holds an attention or MLP with its "
    "residual add, so nothing is forecast and every call runs as with plain torch.compile. explain() lists where each graph ends."
)

_CHANGED = (
    "at step {step} of a generation the input sizes changed (batch, resolution or dtype), or calls reached a part of the model "
    "that was not called before, so the derivatives were reset and the warm-up of full steps begins again. Keep these constant "
    "within a generation to avoid it."
)

_NO_STEP = (
    "the denoising step could not be determined, so calls run in full: no timestep is among the inputs of this graph (nor of "
    f"one before it in the forward), or the timestep stood still for more than {MAX_STREAMS} forwards. Give the step, "
    "`with backend.stream('name', step=i): model(...)`, or attach the pipeline, `backend.attach(pipe)`, which reports it."
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
