"""What the derivative buffers cost, that they are freed, and that a step allocates little beside them."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from taylorseer_fx import taylorseer_backend
from taylorseer_fx.runtime.buffers import BufferLayout
from tests.zoo import MODELS, ZooModel, dit, tiny, tiny_inputs


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def feature_bytes(zoo: ZooModel) -> list[int]:
    """Bytes of every tensor that the feature modules return in a call, counted with hooks."""
    sizes: list[int] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        sizes.extend(tensor.nbytes for tensor in (output if isinstance(output, tuple) else (output,)))

    handles = [module.register_forward_hook(hook) for module in zoo.feature_modules]
    zoo.model(**zoo.inputs(0))
    for handle in handles:
        handle.remove()
    return sizes


@pytest.mark.parametrize(("name", "order"), [("dit", 0), ("dit", 3), ("flux", 1), ("pixart", 2)])
def test_buffer_bytes(name, order):
    """Reported, allocated and counted by hand agree: ``order + 1`` buffers of every feature, for every stream."""
    zoo = MODELS[name]()
    backend = taylorseer_backend(order=order, interval=3, warmup=1, compiler="eager")
    compiled = torch.compile(zoo.model, backend=backend)
    for step in range(5):
        compiled(**zoo.inputs(step))
    sizes = feature_bytes(zoo)
    assert len(sizes) == zoo.num_features
    assert backend.explain().buffer_bytes == backend.stats().buffer_bytes == (order + 1) * sum(sizes)
    with backend.stream("second"):
        compiled(**zoo.inputs(0))
    assert backend.stats().buffer_bytes == 2 * (order + 1) * sum(sizes)


def test_reset_frees(monkeypatch):
    """After ``reset()`` nothing is counted, and the buffers themselves are gone."""
    allocated: list[weakref.ref[Tensor]] = []
    allocate = BufferLayout.allocate

    def recorded(layout: BufferLayout, *args: Any) -> list[Tensor]:
        buffers = allocate(layout, *args)
        allocated.extend(weakref.ref(buffer) for buffer in buffers)
        return buffers

    monkeypatch.setattr(BufferLayout, "allocate", recorded)
    backend = taylorseer_backend(order=2, compiler="eager")
    compiled = torch.compile(tiny(), backend=backend)
    for name in ("a", "b"):
        for step in range(8):
            with backend.stream(name):
                compiled(**tiny_inputs(step))
    gc.collect()
    assert len(allocated) == 2 * 2 * 3
    assert all(buffer() is not None for buffer in allocated)
    backend.reset()
    gc.collect()
    assert all(buffer() is None for buffer in allocated)
    assert backend.stats().buffer_bytes == 0


def test_generations_share_buffers(monkeypatch):
    """Buffers are allocated in a stream's first step, then never again: not on later steps, nor in later generations."""
    calls: list[int] = []
    allocate = BufferLayout.allocate
    monkeypatch.setattr(BufferLayout, "allocate", lambda layout, *args: calls.append(1) or allocate(layout, *args))
    compiled = torch.compile(tiny(), backend=taylorseer_backend(order=2, compiler="eager"))
    for _ in range(3):
        for step in range(10):
            compiled(**tiny_inputs(step))
            assert len(calls) == 1


def peak_bytes(call: Any) -> int:
    """Most that was allocated at once on the CPU in a call, over what was there before it; read off the profiler's events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


@pytest.mark.inductor
def test_forecast_step_peak():
    """Beside buffers and output, a forecast step holds at most two hidden states, at order 4; a full step several times that.

    Two, because the residual stream and one copy of it (normed, or projected) may have to exist at once in the last layer; all
    else, the conditioning of the blocks and the latents, is small with 256 tokens, and has room as long as only one hidden
    state is alive, which is what was measured. The polynomials take none of it: an unfused one would hold the stream, its sum
    so far and a term, three at once.
    """
    zoo = dit(head_dim=32, size=32)
    backend = taylorseer_backend(order=4, interval=2, warmup=1)
    compiled = torch.compile(zoo.model, backend=backend)
    for step in range(5):
        compiled(**zoo.inputs(step))
    steps = [zoo.inputs(5), zoo.inputs(6)]
    forecast, full = (peak_bytes(lambda inputs=inputs: compiled(**inputs)) for inputs in steps)
    assert (backend.stats().full_calls, backend.stats().forecast_calls) == (4, 3)
    hidden_bytes = 2 * 256 * 64 * 4
    output_bytes = compiled(**zoo.inputs(7))[0].nbytes
    assert 0 < forecast <= 2 * hidden_bytes + output_bytes
    assert forecast < full / 2
