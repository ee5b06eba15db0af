"""What a call costs beside the model: our own Python per call, with variants that do nothing."""

import statistics
from collections.abc import Callable
from timeit import repeat, timeit
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.workloads import Workload, tiny_dit
from taylorseer_fx import taylorseer_backend
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.runtime.buffers import BufferLayout
from taylorseer_fx.runtime.calls import CompiledVariant, GraphInfo, picker
from taylorseer_fx.runtime.captures import same_addresses
from taylorseer_fx.runtime.cuda_graphs import CapturePlan
from taylorseer_fx.runtime.dispatch import Dispatcher
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.runtime.state import Runtime

NUM_STEPS, ROUNDS = 50, 100
NUM_WEIGHTS, NUM_FEATURES, ORDER = 780, 114, 2  # as many inputs and buffers as FLUX.1-dev has
NUM_INPUTS = 7  # that are no weights


def test_dispatch_flux_sized(benchmark: BenchmarkFixture) -> None:
    """One call of the dispatcher for a graph with the inputs and buffers of FLUX.1-dev; the timestep is a CPU tensor."""
    template = torch.empty(1)
    layout = BufferLayout.of([template] * (NUM_FEATURES * (ORDER + 1)), [template] * (NUM_WEIGHTS + 1))
    variant = CompiledVariant(_nothing, picker(range(NUM_WEIGHTS // 3)))
    runtime = Runtime(Schedule(), Storage(ORDER), lambda *_: None)
    dispatcher = Dispatcher(runtime, GraphInfo(0, 0, (NUM_WEIGHTS,)), dict.fromkeys(StepKind, variant), layout, torch.float32)
    weights = [torch.empty(1)] * NUM_WEIGHTS
    timesteps = [torch.full((2,), 1000 - 20 * step) for step in range(NUM_STEPS)]

    def generation() -> None:
        for timestep in timesteps:
            dispatcher([*weights, timestep])

    benchmark(generation)
    benchmark.extra_info["microseconds_a_call"] = benchmark.stats.stats.median / len(timesteps) * 1e6


def test_dispatch_graphed_flux_sized(benchmark: BenchmarkFixture) -> None:
    """The same with CUDA graphs, of a stand-in whose replay does nothing: all addresses are compared (here in Python; builds of
    torch with CUDA do it in C++), inputs are copied into staging memory and the output out of it.
    """
    template, weight = torch.empty(1), torch.empty(1)
    layout = BufferLayout.of([template] * (NUM_FEATURES * (ORDER + 1)), [template] * (NUM_WEIGHTS + NUM_INPUTS))
    runtime = Runtime(Schedule(), Storage(ORDER), lambda *_: None)
    runtime.capture_with(NoGraphs())
    assert runtime.cuda_graphs is not None
    every_input = NUM_WEIGHTS + NUM_INPUTS
    others = (*range(NUM_WEIGHTS, every_input), every_input)  # the coefficients come after the inputs
    variants = {}
    for kind, num_weights in ((StepKind.FULL, NUM_WEIGHTS), (StepKind.FORECAST, NUM_WEIGHTS // 3)):
        buffers = range(every_input + 1, every_input + 1 + NUM_FEATURES * (1 if kind is StepKind.FULL else ORDER + 1))
        kept = [*range(num_weights), *(others[:-1] if kind is StepKind.FULL else others), *buffers]
        moving = [i for i, position in enumerate(kept) if position in others]
        static = tuple(i for i in range(len(kept)) if i not in moving)
        plan = CapturePlan(static, tuple(moving), torch.device("cpu"))
        captured = runtime.cuda_graphs.wrap(kind.value, lambda inputs: [inputs[-1] * 1], plan)
        variants[kind] = CompiledVariant(_nothing, picker(kept), captured)
    time_input = every_input - 1
    dispatcher = Dispatcher(runtime, GraphInfo(0, 0, (time_input,)), variants, layout, torch.float32)
    timesteps = [torch.full((2,), 1000 - 20 * step) for step in range(NUM_STEPS)]
    inputs = [torch.empty(2, 3) for _ in range(NUM_INPUTS - 1)]

    def generation() -> None:
        for timestep in timesteps:
            dispatcher([*[weight] * NUM_WEIGHTS, *inputs, timestep])

    generation()
    generation()
    benchmark(generation)
    assert runtime.cuda_graphs.num_captures == 2 * (ORDER + 1)
    num_static = NUM_WEIGHTS // 3 + NUM_FEATURES * (ORDER + 1)  # of a forecast step
    tensors = [torch.empty(1) for _ in range(num_static)]
    addresses, positions = [tensor.data_ptr() for tensor in tensors], list(range(num_static))
    comparing = min(repeat(lambda: same_addresses(tensors, addresses, positions), number=100)) / 100
    benchmark.extra_info["microseconds_comparing_addresses"] = comparing * 1e6
    benchmark.extra_info["microseconds_a_call"] = benchmark.stats.stats.median / len(timesteps) * 1e6


class NoGraphs:
    """Captures nothing, so that what is left is what we do around a graph."""

    device_type = "cpu"

    def is_capturing(self) -> bool:
        return False

    def warm_up(self, _device: torch.device, run: Callable[[], Any]) -> Any:
        return run()

    def capture(self, _device: torch.device, run: Callable[[], Any], _make_room: bool) -> tuple[Any, Any]:
        return self, run()

    def replay(self) -> None:
        pass

    def follow(self, _device: torch.device) -> None:
        pass


def test_tiny_model_call(benchmark: BenchmarkFixture) -> None:
    """A compiled model of next to no work, plainly and with every step full, in turns; one thread, since waking others varies."""
    torch.compiler.reset()  # other tests' compiled code would be looked through first
    plain = _generation(tiny_dit(), "inductor")
    ours = _generation(tiny_dit(), taylorseer_backend(interval=1))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = [(timeit(plain, number=1), timeit(ours, number=1)) for _ in range(ROUNDS)]
        benchmark(ours)
    finally:
        torch.set_num_threads(num_threads)
    plain_seconds, ours_seconds = (statistics.median(column) for column in zip(*seconds, strict=True))
    benchmark.extra_info.update(
        plain_microseconds_a_call=plain_seconds / NUM_STEPS * 1e6, ours_microseconds_a_call=ours_seconds / NUM_STEPS * 1e6
    )


def _generation(workload: Workload, backend: Any) -> Callable[[], None]:
    compiled: Callable[..., object] = torch.compile(workload.model, backend=backend)
    inputs = [workload.inputs(step) for step in range(NUM_STEPS)]

    def run() -> None:
        with torch.no_grad():
            for arguments in inputs:
                compiled(**arguments)

    run()
    return run


def _nothing(inputs: list[Any]) -> list[Any]:
    inputs.clear()
    return []
