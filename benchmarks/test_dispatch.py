"""What a call costs beside the model: our own Python per call, with variants that do nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.workloads import tiny_dit
from taylorseer_fx import taylorseer_backend
from taylorseer_fx.passes.specialize import StepKind
from taylorseer_fx.runtime.buffers import BufferLayout
from taylorseer_fx.runtime.dispatch import CompiledVariant, Dispatcher, Runtime, picker
from taylorseer_fx.runtime.schedule import Schedule

NUM_WEIGHTS, NUM_FEATURES, ORDER = 780, 114, 2  # as many inputs and buffers as FLUX.1-dev has


def test_dispatch_flux_sized(benchmark: BenchmarkFixture) -> None:
    """One call of the dispatcher for a graph with the inputs and buffers of FLUX.1-dev; the timestep is a CPU tensor."""
    template = torch.empty(1)
    layout = BufferLayout.of([template] * (NUM_FEATURES * (ORDER + 1)), [template] * (NUM_WEIGHTS + 1))
    variant = CompiledVariant(_nothing, picker(range(NUM_WEIGHTS // 3)))
    runtime = Runtime(Schedule(), ORDER, lambda *_: None)
    dispatcher = Dispatcher(runtime, 0, dict.fromkeys(StepKind, variant), layout, [NUM_WEIGHTS], torch.float32)
    weights = [torch.empty(1)] * NUM_WEIGHTS
    timesteps = [torch.full((2,), 1000 - 20 * step) for step in range(50)]

    def generation() -> None:
        for timestep in timesteps:
            dispatcher([*weights, timestep])

    benchmark(generation)
    benchmark.extra_info["microseconds_a_call"] = benchmark.stats.stats.median / len(timesteps) * 1e6


@pytest.mark.parametrize("kind", ["plain", "ours"])
def test_tiny_model_call(benchmark: BenchmarkFixture, kind: str) -> None:
    """A compiled model of next to no work, called at every step of a generation: plainly, and with every step full."""
    torch.compiler.reset()  # another test's compiled code would be looked through first
    workload = tiny_dit()
    backend: Any = taylorseer_backend(interval=1) if kind == "ours" else "inductor"
    compiled: Callable[..., object] = torch.compile(workload.model, backend=backend)
    inputs = [workload.inputs(step) for step in range(50)]

    def generation() -> None:
        with torch.no_grad():
            for arguments in inputs:
                compiled(**arguments)

    generation()
    benchmark(generation)
    benchmark.extra_info["microseconds_a_call"] = benchmark.stats.stats.median / len(inputs) * 1e6


def _nothing(inputs: list[Any]) -> list[Any]:
    inputs.clear()
    return []
