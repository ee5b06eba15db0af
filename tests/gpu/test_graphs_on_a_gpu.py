"""The real thing, where there is a GPU: captures, no waits, memory; elsewhere tests/runtime does it with a stand-in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taylorseer_fx import TaylorSeerBackend, TaylorSeerWarning, taylorseer_backend
from tests.zoo import MODELS, Tiny, randomize, tiny, tiny_inputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NUM_STEPS = 14
COMPILERS = ["eager", pytest.param("inductor", marks=pytest.mark.inductor)]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def make(model: nn.Module, **settings: Any) -> tuple[TaylorSeerBackend, Callable[..., Tensor]]:
    backend = taylorseer_backend(**{"order": 2, "interval": 3, "warmup": 2, "compiler": "eager"} | settings)
    return backend, torch.compile(model, backend=backend)


def on_gpu(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cuda() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def generate(backend: TaylorSeerBackend, compiled: Callable[..., Any], name: str = "a", **inputs: Any) -> list[Tensor]:
    outputs = []
    for step in range(NUM_STEPS):
        with backend.stream(name, step=step):
            outputs.append(compiled(**on_gpu(tiny_inputs(step, num_steps=NUM_STEPS, **inputs))))
    return outputs


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("settings", [{}, {"buffer_dtype": torch.float8_e5m2}, {"granularity": "stack"}], ids=str)
def test_as_without(compiler, settings):
    """Two generations, two resolutions and two streams in turns: bit for bit as without CUDA graphs."""
    model = tiny().cuda()
    plain_backend, plain = make(model, compiler=compiler, cuda_graphs=False, **settings)
    backend, compiled = make(model, compiler=compiler, cuda_graphs=True, **settings)
    for length in (6, 9, 6):
        for name, seed in (("cond", 0), ("uncond", 1)):
            expected = generate(plain_backend, plain, name, seed=seed, length=length)
            assert equal(generate(backend, compiled, name, seed=seed, length=length), expected)
    assert backend.stats().captures > 0
    assert backend.stats().replays > backend.stats().captures


@pytest.mark.parametrize("name", ["dit", "flux", "sd3", "pixart"])
def test_models(name):
    """Of diffusers."""
    zoo = MODELS[name]()
    model = zoo.model.cuda()
    backends = {flag: make(model, compiler="eager", cuda_graphs=flag) for flag in (False, True)}
    for step in range(8):
        results = []
        for backend, compiled in backends.values():
            with backend.stream("a", step=step):
                results.append(compiled(**on_gpu(zoo.inputs(step)))[0])
        assert torch.equal(*results)
    assert backends[True][0].stats().replays > 0


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_no_call_waits(compiler, cuda_graphs):
    """With the step told, from the second generation on; in the first, kernels are compiled and graphs captured."""
    backend, compiled = make(tiny().cuda(), compiler=compiler, cuda_graphs=cuda_graphs)
    inputs = [on_gpu(tiny_inputs(step, num_steps=NUM_STEPS)) for step in range(NUM_STEPS)]
    for generation in range(3):
        for step in range(NUM_STEPS):
            with backend.stream("a", step=step):
                if generation:
                    with no_waiting():
                        compiled(**inputs[step])
                else:
                    compiled(**inputs[step])


def test_one_read_from_the_timestep_alone():
    """As many waits as calls, no more."""
    _, compiled = make(tiny().cuda(), cuda_graphs=True)
    inputs = [on_gpu(tiny_inputs(step, num_steps=NUM_STEPS)) for step in range(NUM_STEPS)]
    for arguments in inputs:
        compiled(**arguments)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing CUDA operation") as caught:
            _ = [compiled(**arguments) for arguments in inputs]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([entry for entry in caught if "synchronizing" in str(entry.message)]) <= NUM_STEPS


def test_weights_moved():
    """Off the device and back, with other values."""
    model = tiny().cuda()
    backend, compiled = make(model, cuda_graphs=True)
    generate(backend, compiled)
    before = backend.stats().captures
    model.cpu()
    for parameter in model.parameters():
        parameter.data.mul_(1.25)
    keep = torch.empty(2**20, device="cuda")  # takes the place of some weight
    model.cuda()
    plain_backend, plain = make(model, cuda_graphs=False)
    assert equal(generate(backend, compiled), generate(plain_backend, plain))
    assert backend.stats().captures >= before
    assert keep.numel()


def test_outputs_are_kept():
    backend, compiled = make(tiny().cuda(), cuda_graphs=True)
    generate(backend, compiled)
    outputs = generate(backend, compiled)
    copies = [output.clone() for output in outputs]
    generate(backend, compiled, seed=3)
    assert equal(outputs, copies)


@pytest.mark.filterwarnings("ignore:taylorseer_fx")
def test_a_capture_that_fails():
    """An operator that waits for the device: the current stream, later captures and results are as they should be."""

    @torch.library.custom_op("taylorseer_test::waits", mutates_args=())
    def waits(x: Tensor) -> Tensor:
        return x * float(x.abs().max() > -1)

    waits.register_fake(torch.empty_like)

    class Waits(Tiny):
        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            return torch.ops.taylorseer_test.waits(super().forward(x, timestep))

    model = randomize(Waits()).cuda()
    backend, compiled = make(model, cuda_graphs=True)
    plain_backend, plain = make(model, cuda_graphs=False)
    before = torch.cuda.current_stream()
    with pytest.warns(TaylorSeerWarning, match="waits"):
        outputs = generate(backend, compiled)
    assert torch.cuda.current_stream() == before
    assert equal(outputs, generate(plain_backend, plain))
    other_backend, other = make(tiny().cuda(), cuda_graphs=True)
    generate(other_backend, other)
    assert other_backend.stats().captures > 0


def test_one_pool():
    """More captures of a step take no more memory than the first, but for what they return; and reset gives it back."""
    backend, compiled = make(tiny().cuda(), cuda_graphs=True, order=4)
    generate(backend, compiled)
    torch.cuda.synchronize()
    reserved = torch.cuda.memory_reserved()
    generate(backend, compiled)
    assert torch.cuda.memory_reserved() <= reserved + 2**21
    backend.reset()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved


def test_streams_of_the_device():
    """Calls on two CUDA streams in turns: replays share memory, so they come one after the other."""
    model = tiny().cuda()
    backend, compiled = make(model, cuda_graphs=True)
    plain_backend, plain = make(model, cuda_graphs=False)
    streams, outputs = [torch.cuda.Stream() for _ in range(2)], [[], []]
    inputs = [[on_gpu(tiny_inputs(step, seed=seed)) for step in range(NUM_STEPS)] for seed in (0, 1)]
    torch.cuda.synchronize()
    for _ in range(2):
        outputs = [[], []]
        for step in range(NUM_STEPS):
            for i, stream in enumerate(streams):
                with torch.cuda.stream(stream), backend.stream(str(i), step=step):
                    outputs[i].append(compiled(**inputs[i][step]))
    torch.cuda.synchronize()
    for i in range(2):
        for step in range(NUM_STEPS):
            with plain_backend.stream(str(i), step=step):
                assert torch.equal(plain(**inputs[i][step]), outputs[i][step])
