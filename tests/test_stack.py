"""granularity="stack": one feature for all that the blocks add, against the method written with hooks and against the modules."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taylorseer_fx import TaylorSeerBackend, TaylorSeerWarning, taylorseer_backend
from taylorseer_fx.config import BackendConfig
from tests.models.both import BothBackend
from tests.reference import HookReference
from tests.turns import in_turns
from tests.zoo import MODELS, ZooModel, dit, flux, tiny, tiny_inputs

NUM_STEPS = 14
SETTINGS: dict[str, Any] = {"interval": 4, "warmup": 3}
TOLERANCE = 1e-12


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Tapped(nn.Module):
    """Stands before the last norm of a model: what the blocks added to their stream goes through ``added``, to hang a hook on."""

    def __init__(self, embedder: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.added, self.norm = nn.Identity(), norm
        embedder.register_forward_hook(self._remember)

    def _remember(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.entry = output

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return self.norm(self.entry + self.added(x - self.entry), *args)


def stack_reference(zoo: ZooModel, order: int, **settings: Any) -> HookReference:
    """The method with what a stack adds as its one feature; ``zoo.model`` is changed, so it is not for use elsewhere."""
    model = zoo.model
    model.norm_out = Tapped(model.x_embedder if zoo.name == "flux" else model.pos_embed, model.norm_out)
    return HookReference(model, [model.norm_out.added], order, **settings)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def compile_stack(model: nn.Module, **settings: Any) -> tuple[TaylorSeerBackend, Callable[..., Any]]:
    backend = taylorseer_backend(granularity="stack", compiler="eager", **settings)
    return backend, torch.compile(model, backend=backend, fullgraph=True)


@pytest.mark.parametrize("name", in_turns(MODELS, weeks=2))
def test_equals_the_reference(name):
    """Gates and latents move: every step equals the reference, full ones the model; one region, one feature."""
    zoo, reference = MODELS[name](torch.float64), stack_reference(MODELS[name](torch.float64), order=2, **SETTINGS)
    backend, compiled = compile_stack(zoo.model, order=2, **SETTINGS)
    for step in range(NUM_STEPS):
        inputs = zoo.inputs(step)
        output, plain = compiled(**inputs)[0], zoo.model(**inputs)[0]
        assert relative_error(output, reference(step, inputs)) <= TOLERANCE, f"step {step}"
        assert (relative_error(output, plain) <= TOLERANCE) == reference.is_full(step), f"step {step}"
    (region,) = backend.explain().regions
    assert (region.kind, len(region.features)) == ("stack", 1)


@pytest.mark.parametrize(("model", "order"), in_turns([*((dit, order) for order in range(4)), (flux, 2)], weeks=5))
def test_equals_the_modules_under_constant_gates(model, order):
    """Where the time stands still, so that gates do not move, both are the same linear extrapolation; else they are not."""
    zoo = model(torch.float64)
    backend = BothBackend(BackendConfig(order=order, compiler="eager", **SETTINGS))
    compiled = torch.compile(zoo.model, backend=backend, fullgraph=True)
    standing = {"timestep": zoo.inputs(20)["timestep"]}
    differences = {}
    for stream, time in (("standing", standing), ("moving", {})):
        for step in range(NUM_STEPS):
            with backend.stream(stream, step=step):
                compiled(**zoo.inputs(step) | time)
        calls = [call for call in backend.take_calls() if not call.was_full]
        differences[stream] = [relative_error(call.stack[0], call.modules[0]) for call in calls]
    assert max(differences["standing"]) <= TOLERANCE
    assert min(differences["moving"]) > 1e-6


@pytest.mark.inductor
@pytest.mark.turn(0, 2)
def test_through_inductor():
    """Compiled, the stack still equals the reference."""
    zoo, reference = dit(), stack_reference(dit(), order=1, interval=3, warmup=2)
    backend = taylorseer_backend(order=1, interval=3, warmup=2, granularity="stack")
    compiled = torch.compile(zoo.model, backend=backend, fullgraph=True)
    for step in range(8):
        assert relative_error(compiled(**zoo.inputs(step))[0], reference(step, zoo.inputs(step))) <= 1e-4
    assert backend.stats().forecast_calls == 4


def generate(compiled: Callable[..., Any], *lengths: int) -> None:
    """A generation of each length."""
    for length in lengths:
        for step in range(6):
            compiled(**tiny_inputs(step, length=length))


FEATURE_BYTES = 2 * 6 * 32 * 4  # of tiny's inputs: batch, length, width, float32; it has two, and order 1 two buffers of each


def test_within_budget():
    """A budget that the modules just fit in leaves them as they are, without a word."""
    backend = taylorseer_backend(memory_budget=4 * FEATURE_BYTES, compiler="eager")
    generate(torch.compile(tiny(), backend=backend), 6)
    assert backend.explain().granularity == "module"
    assert backend.stats().peak_buffer_bytes == 4 * FEATURE_BYTES


def test_over_budget():
    """A byte less and there is one feature for the stack, as a warning says; said once, whatever else is compiled."""
    backend = taylorseer_backend(memory_budget=4 * FEATURE_BYTES - 1, compiler="eager")
    compiled = torch.compile(tiny(), backend=backend, dynamic=False)
    with pytest.warns(TaylorSeerWarning, match=r"would take 6.00 KiB per stream, .* granularity .stack. instead\.") as caught:
        generate(compiled, 6, 9, 6)
    assert len(caught) == 1
    assert backend.stats().graphs == 2
    assert {backend.explain(graph=i).granularity for i in range(2)} == {"stack"}
    assert backend.stats().buffer_bytes == 2 * FEATURE_BYTES
    assert backend.stats().peak_buffer_bytes == 3 * FEATURE_BYTES


def test_far_over_budget():
    """Where not even the stack fits it is taken all the same, and the warning says what it takes."""
    backend = taylorseer_backend(memory_budget=100, compiler="eager")
    with pytest.warns(TaylorSeerWarning, match=r"memory_budget=100 B: granularity .stack. instead, which still takes 3.00 KiB"):
        generate(torch.compile(tiny(), backend=backend), 6)
    assert backend.explain().buffer_bytes == backend.stats().buffer_bytes == 2 * FEATURE_BYTES
