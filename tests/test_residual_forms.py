"""A model with a layer of every form of residual sum, over a generation: each step equals the hook reference."""

import pytest
import torch
from torch import Tensor, nn

from taylorseer_fx import taylorseer_backend
from taylorseer_fx.config import BackendConfig
from tests.forms import LINEAR, OTHERS, Form
from tests.models.both import BothBackend
from tests.reference import HookReference
from tests.zoo import Inputs, randomize, smooth

WIDTH, NUM_STEPS = 16, 10
TOLERANCE = 1e-10


class Formed(nn.Module):
    """A linear layer for each form. Of the sums, what the layers added goes through ``added``, to hang a hook on."""

    def __init__(self, forms: dict[str, Form], tapped: bool = False) -> None:
        super().__init__()
        self.forms, self.tapped = list(forms.values()), tapped
        self.register_buffer("frequencies", torch.logspace(0, -2, WIDTH))
        self.embed, self.gate, self.head = nn.Linear(8, WIDTH), nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 8)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in forms)
        self.norm, self.added = nn.LayerNorm(WIDTH, elementwise_affine=False), nn.Identity()

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        phase = timestep[:, None] * self.frequencies
        gate = self.gate(torch.cat([phase.sin(), phase.cos()], dim=-1)).tanh()[:, None]
        x = entry = self.embed(x)
        for form, layer in zip(self.forms, self.layers, strict=True):
            x = form(x, layer(self.norm(x)), gate)
            entry = form(entry, torch.zeros_like(x), gate) if self.tapped else entry
        return self.head(self.norm(entry + self.added(x - entry) if self.tapped else x))


def inputs_of(step: int) -> Inputs:
    return {"x": smooth((2, 6, 8), step, 0, torch.float64), "timestep": torch.full((2,), 1000.0 - 20 * step, dtype=torch.float64)}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def build(forms: dict[str, Form], tapped: bool = False) -> Formed:
    return randomize(Formed(forms, tapped), torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("order", [0, 1, 2])
def test_equals_the_reference(order):
    """The modules are those that make the branches; the stack's entry is what the forms make of it with branches of zeros."""
    settings = {"order": order, "interval": 3, "warmup": 2}
    model, tapped = build(LINEAR), build(LINEAR, tapped=True)
    backend = BothBackend(BackendConfig(compiler="eager", **settings))
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    of_modules, of_stack = (
        HookReference(model, list(model.layers), **settings),
        HookReference(tapped, [tapped.added], **settings),
    )
    for step in range(NUM_STEPS):
        compiled(**inputs_of(step))
        (call,) = backend.take_calls()
        assert call.was_full == of_modules.is_full(step)
        assert relative_error(call.modules[0], of_modules(step, inputs_of(step))) <= TOLERANCE, f"step {step}"
        assert relative_error(call.stack[0], of_stack(step, inputs_of(step))) <= TOLERANCE, f"step {step}, stack"
        assert (relative_error(call.modules[0], model(**inputs_of(step))) <= TOLERANCE) == call.was_full
    assert len(backend.explain().regions) == len(LINEAR)


@torch.no_grad()
@pytest.mark.parametrize("order", [0, 2])
def test_others(order):
    """Where the stream is normed, or the branch holds the trunk, too."""
    settings = {"order": order, "interval": 3, "warmup": 2}
    model = build(OTHERS)
    compiled = torch.compile(model, backend=taylorseer_backend(compiler="eager", **settings), fullgraph=True)
    reference = HookReference(model, list(model.layers), **settings)
    for step in range(NUM_STEPS):
        output, plain = compiled(**inputs_of(step)), model(**inputs_of(step))
        assert relative_error(output, reference(step, inputs_of(step))) <= TOLERANCE, f"step {step}"
        assert (relative_error(output, plain) <= TOLERANCE) == reference.is_full(step)
