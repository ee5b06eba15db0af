"""Full steps equal the model, forecast steps equal the method: every model against an eager reference written on its own.

Most of it runs in float64 and without Inductor, where a wrong coefficient cannot hide behind rounding.
"""

import ast
import inspect
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from taylorseer_fx import TaylorSeerBackend, taylorseer_backend
from taylorseer_fx.passes.guard_regions import cond
from taylorseer_fx.runtime.coefficients import SnapshotHistory
from taylorseer_fx.runtime.dispatch import Dispatcher
from tests.reference import HookReference
from tests.turns import in_turns
from tests.zoo import MODELS, ZooModel, dit, flux, sd3, tiny, tiny_inputs

NUM_STEPS = 50
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-4}


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def assert_parity(zoo: ZooModel, backend: TaylorSeerBackend, num_steps: int, tolerance: float) -> list[Tensor]:
    """Run a trajectory through the backend and through the reference, the same inputs to both, and compare every step."""
    config = backend.config
    compiled = torch.compile(zoo.model, backend=backend, fullgraph=True)
    reference = HookReference(
        zoo.model, zoo.feature_modules, config.order, config.interval, config.warmup, full_steps=config.full_steps
    )
    outputs = []
    for step in range(num_steps):
        outputs.append(compiled(**zoo.inputs(step))[0])
        error = relative_error(outputs[-1], reference(step, zoo.inputs(step)))
        assert error <= tolerance, f"step {step} is off by {error:.2e}"
    num_full = sum(map(reference.is_full, range(num_steps)))
    stats = backend.stats()
    assert (stats.full_calls, stats.forecast_calls) == (num_full, num_steps - num_full)
    return outputs


def test_reference_is_independent():
    """The reference imports nothing of the package, so both cannot share a mistake."""
    tree = ast.parse(Path(inspect.getfile(HookReference)).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= {
        "collections",
        "contextlib",
        "dataclasses",
        "functools",
        "itertools",
        "math",
        "typing",
        "torch",
    }


@pytest.mark.parametrize("name", MODELS)
def test_forecasts_differ_from_the_model(name):
    """The zoo is not blind: forecasting changes outputs by far more than any tolerance here, and the order matters."""
    zoo = MODELS[name](torch.float64)
    references = [HookReference(zoo.model, zoo.feature_modules, order, interval=4, warmup=2) for order in range(5)]
    for step in range(21):
        outputs = [reference(step, zoo.inputs(step)) for reference in references]
    outputs.append(zoo.model(**zoo.inputs(20))[0])
    errors = [relative_error(a, b) for i, a in enumerate(outputs) for b in outputs[:i]]
    assert not references[0].is_full(20)
    assert min(errors) > 1e-3


SETTINGS = [  # order, interval, warmup
    *[("dit", *setting) for setting in [(0, 5, 3), (1, 2, 1), (4, 10, 5)]],
    *[("flux", *setting) for setting in [(4, 6, 1)]],
    *[("sd3", *setting) for setting in [(1, 5, 3), (3, 7, 2)]],
    *[("pixart", *setting) for setting in [(0, 8, 7), (2, 2, 1), (3, 4, 2)]],
]


@pytest.mark.parametrize(("name", "order", "interval", "warmup"), in_turns(SETTINGS, weeks=3))
def test_trajectory(name, order, interval, warmup):
    """All 50 steps equal the reference, to the rounding of float64."""
    backend = taylorseer_backend(order, interval, warmup, compiler="eager")
    assert_parity(MODELS[name](torch.float64), backend, NUM_STEPS, ROUNDING[torch.float64])


@pytest.mark.parametrize("name", in_turns(MODELS, weeks=2))
def test_every_feature_in_float32(name):
    """Regions of the expected kinds, a feature for every module output, nothing rejected; 50 steps right to 1e-4 in float32.

    The last step is full, and there output and plain model agree.
    """
    zoo = MODELS[name]()
    backend = taylorseer_backend(order=2, interval=5, warmup=3, compiler="eager")
    outputs = assert_parity(zoo, backend, NUM_STEPS, ROUNDING[torch.float32])
    assert relative_error(outputs[47], zoo.model(**zoo.inputs(47))[0]) <= 1e-6
    report = backend.explain()
    kinds = [region.kind for region in report.regions]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == zoo.kinds
    assert sum(len(region.features) for region in report.regions) == zoo.num_features
    assert report.rejected == ()


@pytest.mark.parametrize("seed", in_turns(range(6), weeks=3))
def test_trajectory_random_settings(seed):
    """Orders, intervals and warm-ups drawn at random, on DiT."""
    draw = random.Random(seed)
    backend = taylorseer_backend(draw.randint(1, 4), draw.randint(1, 10), draw.randint(1, 10), compiler="eager")
    assert_parity(dit(torch.float64), backend, NUM_STEPS, ROUNDING[torch.float64])


@pytest.mark.parametrize(
    ("full_steps", "order"),
    in_turns([((0, 1, 3, 4, 9, 11, 22), 4), ((0, 7, 8, 30), 1), ((0, 1, 2, 3, 10, 12, 13, 27), 3)], weeks=3),
)
def test_explicit_full_steps(full_steps, order):
    """Full steps with uneven gaps; the run goes on forecasting behind the last of them."""
    backend = taylorseer_backend(order, full_steps=full_steps, compiler="eager")
    assert_parity(dit(torch.float64), backend, 32, ROUNDING[torch.float64])


@pytest.mark.turn(1, 2)
def test_ddim_closed_loop():
    """DiT in diffusers' DDIM loop: the forecasts of a step shape the next step's input, and nothing drifts apart."""
    zoo = dit(torch.float64)
    backend = taylorseer_backend(order=2, interval=5, warmup=3, compiler="eager")
    compiled = torch.compile(zoo.model, backend=backend)
    reference = HookReference(zoo.model, zoo.feature_modules, order=2, interval=5, warmup=3)

    def sample(denoise: Any) -> Tensor:
        scheduler = DDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(NUM_STEPS)
        inputs = zoo.inputs(0)
        latents = inputs["hidden_states"]
        for step, t in enumerate(scheduler.timesteps):
            prediction = denoise(step, inputs | {"hidden_states": latents, "timestep": t.expand(2)})
            latents = scheduler.step(prediction[:, :4], t, latents).prev_sample
        return latents

    actual = sample(lambda step, inputs: compiled(**inputs)[0])
    assert relative_error(actual, sample(reference)) <= 1e-9
    assert backend.stats().forecast_calls == 38


@pytest.mark.turn(0, 2)
def test_flow_match_closed_loop():
    """FLUX in diffusers' flow-matching loop, whose timesteps are uneven and fractional."""
    zoo = flux(torch.float64)
    backend = taylorseer_backend(order=1, interval=4, warmup=2, compiler="eager")
    compiled = torch.compile(zoo.model, backend=backend)
    reference = HookReference(zoo.model, zoo.feature_modules, order=1, interval=4, warmup=2)

    def sample(denoise: Any) -> Tensor:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(28)
        inputs = zoo.inputs(0)
        latents = inputs["hidden_states"]
        for step, t in enumerate(scheduler.timesteps):
            timestep = (t / 1000).expand(2).to(latents.dtype)
            prediction = denoise(step, inputs | {"hidden_states": latents, "timestep": timestep})
            latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
        return latents

    actual = sample(lambda step, inputs: compiled(**inputs)[0])
    assert relative_error(actual, sample(reference)) <= 1e-6  # the scheduler works in float32
    assert backend.stats().forecast_calls == 20


class RecordArguments:
    """Stands before ``Dispatcher.__call__`` and keeps what the graph is called with, and what it returned."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.arguments: list[Any] = []
        self.outputs: list[Any] = []

    def __get__(self, dispatcher: Dispatcher, owner: type) -> Any:
        def call(args: list[Any]) -> Any:
            self.arguments = list(args)  # a dispatcher empties the list that it is given
            self.outputs = list(self.original(dispatcher, args))
            return self.outputs

        return call


@pytest.mark.parametrize(("name", "order"), in_turns([("dit", 3), ("sd3", 1)], weeks=2))
def test_guarded_graph(monkeypatch, name, order):
    """The guarded graph, run as it is with its predicate and buffers passed by hand, equals both reference and variants.

    To the full variant it is equal bit for bit; in a forecast step the variant multiplies with slices of the weights, which may
    round another way.
    """
    zoo = MODELS[name](torch.float64)
    backend = taylorseer_backend(order=order, interval=3, warmup=2, compiler="eager")
    compiled = torch.compile(zoo.model, backend=backend)
    reference = HookReference(zoo.model, zoo.feature_modules, order, interval=3, warmup=2)
    record = RecordArguments(Dispatcher.__call__)
    monkeypatch.setattr(Dispatcher, "__call__", record)
    buffers: list[Tensor] = []
    last_full, history = 0, SnapshotHistory(order, order + 1)
    for step in range(15):
        compiled(**zoo.inputs(step))
        if step == 0:
            gm = backend.explain().graph("guarded")
            assert any(node.target is cond for node in gm.graph.nodes)
            inputs = gm.graph.find_nodes(op="placeholder")[len(record.arguments) + 2 :]
            buffers = [torch.zeros(node.meta["val"].shape, dtype=node.meta["val"].dtype) for node in inputs]
        full, gap = reference.is_full(step), step - last_full
        history = history.after_full(step, max(gap, 1), 2) if full else history
        weights = torch.tensor(history.forecast_coefficients(0 if full else gap), dtype=torch.float64)
        results = gm(*record.arguments, torch.tensor(full), weights, *buffers)
        outputs, buffers = results[: len(record.outputs)], list(results[len(record.outputs) :])
        assert 0 < len(buffers) <= zoo.num_features * (order + 1)
        for a, b in zip(outputs, record.outputs, strict=True):
            assert torch.equal(a, b) if full else relative_error(a, b) <= ROUNDING[torch.float64]
        assert relative_error(outputs[0], reference(step, zoo.inputs(step))) <= ROUNDING[torch.float64]
        last_full = step if full else last_full


class LinearBranches(nn.Module):
    """Two residual branches without a gate or a nonlinearity: features are linear in the input, whatever the time."""

    def __init__(self, width: int = 8, num_branches: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(2, width)
        self.branches = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(num_branches))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        phase = timestep[:, None] / 1000
        return x * self.embed(torch.cat([phase.sin(), phase.cos()], dim=-1))[:, None]


def linear_branches(num_branches: int = 2) -> LinearBranches:
    model = LinearBranches(num_branches=num_branches)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.double().requires_grad_(False)


def doubling() -> LinearBranches:
    """``x + x``, the second one a feature."""
    model = linear_branches(num_branches=1)
    model.branches[0].weight.data = torch.eye(8, dtype=torch.float64)
    model.embed.weight.data.zero_()
    model.embed.bias.data = torch.ones(8, dtype=torch.float64)
    return model


@pytest.mark.parametrize(("interval", "warmup"), [(4, 2), (3, 1)])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_linear_signal_is_exact(order, interval, warmup):
    """Features linear in the step are forecast without error from the second derivative-forming full step on."""
    model = linear_branches()
    backend = taylorseer_backend(order=order, interval=interval, warmup=warmup, compiler="eager")
    compiled = torch.compile(model, backend=backend)
    start, slope = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    timestep = torch.full((2,), 1000.0, dtype=torch.float64)
    second_full = 1 if warmup == 2 else interval
    for step in range(20):
        inputs = {"x": start + step * slope, "timestep": timestep - 10 * step}
        error = relative_error(compiled(**inputs), model(**inputs))
        assert error <= 1e-12 or step < second_full
    assert backend.stats().forecast_calls > 10


def test_quadratic_signal_is_off_by_what_the_paper_method_is():
    """f(t) = t**2 with gap 5: at order 2 the official recursion is off by -10 two steps behind a full step, and so are we."""
    backend = taylorseer_backend(order=2, full_steps=(0, 5, 10), compiler="eager")
    compiled = torch.compile(doubling(), backend=backend)
    for step in range(13):
        x = torch.full((2, 3, 8), float(step**2), dtype=torch.float64)
        output = compiled(x, torch.full((2,), 1000.0 - step, dtype=torch.float64))
    forecast = output - x
    torch.testing.assert_close(forecast, torch.full_like(x, 12.0**2 - 10.0), rtol=1e-13, atol=0)


def test_order_zero_reuses_bit_for_bit():
    """Order 0 adds the very feature of the last full step, not one recomputed and not a rounded copy."""
    model = linear_branches(num_branches=1).float()
    model.embed.weight.data.zero_()
    model.embed.bias.data = torch.ones(8)
    compiled = torch.compile(model, backend=taylorseer_backend(order=0, interval=4, warmup=2, compiler="eager"))
    feature = torch.empty(0)
    for step in range(12):
        x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(step))
        output = compiled(x, torch.full((2,), 1000.0 - step))
        if step in (0, 1, 5, 9):
            feature = model.branches[0](x)
        assert torch.equal(output, x + feature), f"step {step}"


@pytest.mark.turn(1, 2)
def test_bfloat16_model():
    """A bf16 model runs, in bf16 buffers, and stays as close to the reference as bf16 allows."""
    backend = taylorseer_backend(order=2, interval=4, warmup=3, compiler="eager")
    assert_parity(dit(torch.bfloat16), backend, 20, 0.05)
    assert {buffer.meta["val"].dtype for buffer in buffer_nodes(backend)} == {torch.bfloat16}


@pytest.mark.turn(0, 2)
def test_bfloat16_buffers_under_float32():
    """``buffer_dtype`` halves the buffers of a float32 model; forecasts lose precision, not sense."""
    wide = taylorseer_backend(order=1, interval=4, warmup=3, compiler="eager")
    narrow = taylorseer_backend(order=1, interval=4, warmup=3, compiler="eager", buffer_dtype=torch.bfloat16)
    for backend, tolerance in ((wide, ROUNDING[torch.float32]), (narrow, 0.05)):
        assert_parity(dit(), backend, 20, tolerance)
    assert {buffer.meta["val"].dtype for buffer in buffer_nodes(narrow)} == {torch.bfloat16}
    assert 2 * narrow.stats().buffer_bytes == wide.stats().buffer_bytes > 0
    assert 2 * narrow.explain().buffer_bytes == wide.explain().buffer_bytes


@pytest.mark.parametrize(("dtype", "tolerance"), in_turns([(torch.float8_e5m2, 0.04), (torch.float8_e4m3fn, 0.012)], weeks=2))
def test_float8_buffers_under_float32(dtype, tolerance):
    """Differences of a byte an element beside the features in float32; what was measured is half of the tolerances."""
    backend = taylorseer_backend(order=2, interval=4, warmup=3, compiler="eager", buffer_dtype=dtype)
    assert_parity(dit(), backend, 20, tolerance)
    assert Counter(buffer.meta["val"].dtype for buffer in buffer_nodes(backend)) == {torch.float32: 4, dtype: 8}


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float8_e5m2, 57344.0), (torch.float8_e4m3fn, 448.0)])
def test_float8_overflow(dtype, largest):
    """A difference beyond the range counts as the largest in it, in a forecast too; it is neither infinite nor NaN."""
    backend = taylorseer_backend(order=1, full_steps=(0, 2), compiler="eager", buffer_dtype=dtype)
    compiled = torch.compile(doubling(), backend=backend)
    for step in range(4):
        x = torch.full((2, 3, 8), -1e6 * step, dtype=torch.float64)
        output = compiled(x, torch.full((2,), 1000.0 - step, dtype=torch.float64))
    assert backend.stats().forecast_calls == 2
    torch.testing.assert_close(output - x, torch.full_like(x, -2e6 - largest), rtol=0, atol=0)


def buffer_nodes(backend: TaylorSeerBackend) -> list[torch.fx.Node]:
    """The derivative buffers among the inputs of the guarded graph: everything behind the coefficients."""
    inputs = backend.explain().graph("guarded").graph.find_nodes(op="placeholder")
    last = max(i for i, node in enumerate(inputs) if node.name in ("coefficients", "reciprocal_gaps"))
    return inputs[last + 1 :]


@pytest.mark.inductor
@pytest.mark.turn(2, 4)
def test_inductor_dit():
    """Through Inductor: 50 steps equal the reference, and the full ones what plain ``torch.compile`` returns. Deep enough for
    blocks of a forecast step to be calls of one.
    """
    zoo, backend = dit(num_layers=5), taylorseer_backend(order=2, interval=5, warmup=3)
    outputs = assert_parity(zoo, backend, NUM_STEPS, ROUNDING[torch.float32])
    plain = torch.compile(zoo.model)
    for step in (0, 1, 2, 7, 47):
        assert relative_error(outputs[step], plain(**zoo.inputs(step))[0]) <= 1e-6
    num_ops = {stage.name: stage.num_ops for stage in backend.explain().stages}
    assert num_ops["fold_repeats_forecast"] < num_ops["clean_up_forecast"] / 2


@pytest.mark.inductor
@pytest.mark.turn(3, 4)
def test_inductor_sd3():
    """Joint attention through Inductor, at the highest order and a short schedule."""
    assert_parity(sd3(num_layers=2), taylorseer_backend(order=4, interval=3, warmup=2), 16, ROUNDING[torch.float32])


@pytest.mark.inductor
@pytest.mark.parametrize("dtype", in_turns([torch.float8_e5m2, torch.float8_e4m3fn], weeks=2))
def test_inductor_float8(dtype):
    """Buffers of eight bits through Inductor: as without it, but for a difference that rounds the other way now and then."""
    model = tiny()
    outputs = []
    for compiler in ("inductor", "eager"):
        torch._dynamo.reset()
        backend = taylorseer_backend(order=2, interval=3, warmup=2, compiler=compiler, buffer_dtype=dtype)
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        outputs.append([compiled(**tiny_inputs(step)) for step in range(8)])
    for step, (actual, expected) in enumerate(zip(*outputs, strict=True)):
        assert relative_error(actual, expected) <= 1e-2, f"step {step}"
