"""The real thing, where there is a GPU: captures, no waits, memory; elsewhere tests/runtime does it with a stand-in."""

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taylorseer_fx import TaylorSeerBackend, TaylorSeerWarning, taylorseer_backend
from taylorseer_fx.compat import new_cuda_stream
from taylorseer_fx.runtime.graph_api import CudaGraphApi, is_capturing
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
    torch.randn(1, device="cuda")  # torch 2.11 would leave the default generator to the capture
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


def run(backend: TaylorSeerBackend, compiled: Callable[..., Any], **inputs: Any) -> list[Tensor]:
    """A generation that ends as a pipeline's run does."""
    outputs = generate(backend, compiled, "run", **inputs)
    backend._runtime.forget("run")
    return outputs


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_second_run_captures_nothing(compiler):
    """Its buffers are those of the first, whatever the allocator gave to others in between."""
    backend, compiled = make(tiny().cuda(), compiler=compiler, cuda_graphs=True)
    first = run(backend, compiled)
    before, others = backend.stats().captures, []
    for _ in range(3):
        others.append(torch.empty(2**22, device="cuda"))
        assert equal(run(backend, compiled), first)
    assert backend.stats().captures == before > 0
    assert backend.stats().buffer_bytes > 0
    backend.reset()
    assert backend.stats().buffer_bytes == 0


@pytest.mark.parametrize("compiler", COMPILERS)
def test_nothing_is_allocated(compiler):
    """From the third run on, but for the output."""
    backend, compiled = make(tiny().cuda(), compiler=compiler, cuda_graphs=True)
    inputs = [on_gpu(tiny_inputs(step, num_steps=NUM_STEPS)) for step in range(NUM_STEPS)]
    counts = []
    for _ in range(3):
        counts = []
        for step, given in enumerate(inputs):
            before = torch.cuda.memory_stats()["allocation.all.allocated"]
            with backend.stream("a", step=step):
                compiled(**given)
            counts.append(torch.cuda.memory_stats()["allocation.all.allocated"] - before)
    assert counts == [1] * NUM_STEPS


class WithProducts(Tiny):
    """With products that cuBLAS has scratch memory for: few rows, a long sum."""

    def __init__(self) -> None:
        super().__init__()
        self.long = nn.Linear(32, 2**14)
        self.back = nn.Linear(2**14, 32)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.back(self.long(super().forward(x, timestep)))


def test_scratch_memory_of_libraries():
    """Captures that go, an unrelated function with CUDA graphs of Inductor, and an emptied cache: what is left serves on, and
    writes into nobody's memory.
    """
    model = randomize(WithProducts()).cuda()
    backend, compiled = make(model, cuda_graphs=True)
    plain_backend, plain = make(model, cuda_graphs=False)
    expected = run(plain_backend, plain)
    run(backend, compiled)
    run(backend, compiled, length=9)
    unrelated = torch.compile(nn.Linear(64, 64).cuda(), mode="reduce-overhead")
    for _ in range(3):
        unrelated(torch.ones(1, 64, device="cuda"))
    shapes = [shape for variant in backend._runtime.cuda_graphs._variants for shape in variant.shapes.values()]
    for shape in shapes:
        shape.captures.pop(next(iter(shape.captures)), None)
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    bystanders = [torch.full((2**20,), 7.0, device="cuda") for _ in range(64)]
    assert equal(run(backend, compiled), expected)
    assert all(bool((bystander == 7).all()) for bystander in bystanders)


def test_another_thread_captures():
    """It makes handles of libraries first, outside of any capture."""
    model = randomize(WithProducts()).cuda()
    backend, compiled = make(model, cuda_graphs=True)
    plain_backend, plain = make(model, cuda_graphs=False)
    expected = run(plain_backend, plain)
    generate(backend, compiled, "here")
    with ThreadPoolExecutor(1) as pool:
        for name in ("there", "there", "elsewhere"):
            assert equal(pool.submit(torch.no_grad()(generate), backend, compiled, name).result(), expected)
    assert "as compiled" not in str(backend.explain())


@pytest.mark.parametrize("has_others", [False, True])
def test_memory_of_a_capture_that_fails(has_others):
    """It is given back at once, or with the last of the captures that share the pool."""
    api, device, num = CudaGraphApi(), torch.device("cuda", torch.cuda.current_device()), 2**28

    def fail() -> None:
        torch.ones(num, device=device).sum().item()

    fail()  # outside of a capture, where it does not
    torch.cuda.empty_cache()
    reserved = torch.cuda.memory_reserved()
    other = api.capture(device, lambda: torch.ones(4, device=device), make_room=True) if has_others else None
    with pytest.raises(RuntimeError, match="captur"):
        api.capture(device, fail, make_room=True)
    torch.randn(1, device=device)
    graph, values = api.capture(device, lambda: torch.ones(num, device=device) * 3, make_room=False)
    graph.replay()
    assert bool((values == 3).all())
    del graph, values, other
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved + 2**22


def test_cuda_streams_of_our_own():
    """None of the 32 that torch gives out in turns, and one can be worked on."""
    device = torch.device("cuda", torch.cuda.current_device())
    own, shared = [new_cuda_stream(device) for _ in range(3)], [torch.cuda.Stream() for _ in range(64)]
    addresses = {stream.cuda_stream for stream in own}
    assert len(addresses) == 3
    assert not addresses & {stream.cuda_stream for stream in shared}
    with torch.cuda.stream(own[0]):
        result = torch.ones(8, device=device) * 2
    own[0].synchronize()
    assert result.sum().item() == 16


def test_inductor_with_cuda_graphs_of_its_own():
    """Switched on for the whole process: they stay out of ours."""
    model = tiny().cuda()
    plain_backend, plain = make(model, compiler="inductor", cuda_graphs=False)
    expected = run(plain_backend, plain)
    torch._dynamo.reset()
    with torch._inductor.config.patch({"triton.cudagraphs": True}):
        backend, compiled = make(model, compiler="inductor", cuda_graphs=True)
        assert equal(run(backend, compiled), expected)
        assert equal(run(backend, compiled), expected)
    assert backend.stats().captures > 0


def test_a_constant_on_the_host():
    """Copied in every call: the steps run as compiled, and the constant is named."""

    class FromHost(Tiny):
        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            return super().forward(x, timestep) * torch.tensor([0.5, 2.0] * 16).to(x.device)

    backend, compiled = make(randomize(FromHost()).cuda(), cuda_graphs=True)
    with pytest.warns(TaylorSeerWarning, match="gives a tensor on cpu"):
        generate(backend, compiled)
    assert backend.stats().captures == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_capturing_on_another_device():
    """The caller captures on one device while another is the current one."""
    side, x = torch.cuda.Stream("cuda:1"), torch.ones(2, device="cuda:1")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        x * 2
        with torch.cuda.device(0):
            assert is_capturing(torch.device("cuda", 1))
            assert not is_capturing(torch.device("cuda", 0))
