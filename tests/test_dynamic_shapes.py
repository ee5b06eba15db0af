"""Resolutions and batches that change from one generation to the next: what recompiles, and that all are forecast right.

Both granularities, from one trace, each against its reference.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taylorseer_fx.config import BackendConfig
from tests.composition.session import short_flux
from tests.models.both import BothBackend
from tests.reference import HookReference
from tests.test_stack import relative_error, stack_reference
from tests.turns import in_turns
from tests.zoo import Inputs, TinyAttention, ZooModel, randomize, sd3, smooth

NUM_STEPS = 7
SETTINGS: dict[str, Any] = {"interval": 3, "warmup": 2}
ORDER = 2
WIDTH = 16  # of the residual stream, in all three models
TEXT_LENGTH = 6
NUM_IMAGE_FEATURES = {"free": 4, "sd3": 4, "flux": 3}
# Read by no forecast step; but FLUX cuts its text off one sequence, where its length is symbolic, too.
NUM_TEXT_FEATURES = {"free": 0, "sd3": 0, "flux": 3}
Size = tuple[int, int, int]  # batch, and the latents' height and width

SIZES: list[Size] = [(5, 8, 12), (5, 12, 8), (2, 10, 10), (5, 8, 12)]  # at first none like another, nor like a static size


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class FreeBlock(nn.Module):
    """Attention and MLP behind a norm, gated by the time (adaLN)."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 2 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = TinyAttention(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        attention_gate, mlp_gate = self.modulation(time)[:, None].chunk(2, dim=-1)
        x = x + attention_gate * self.attention(self.norm(x))
        return x + mlp_gate * self.mlp(self.norm(x))


class PatchEmbedding(nn.Module):
    """Patches of latents as tokens, with positions of rows and columns; any height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(4, WIDTH, 2, stride=2)
        self.frequencies = nn.Parameter(torch.empty(WIDTH))

    def forward(self, latents: Tensor) -> Tensor:
        x = self.project(latents)
        rows, columns = (torch.arange(size, dtype=x.dtype) for size in x.shape[2:])
        positions = (rows[:, None, None] * self.frequencies).sin() + (columns[:, None] * self.frequencies).cos()
        return x.flatten(2).transpose(1, 2) + positions.flatten(0, 1)


class Free(nn.Module):
    """A DiT for latents of any height and width: diffusers' own takes them for square."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = PatchEmbedding()
        self.register_buffer("frequencies", torch.logspace(0, -2, WIDTH // 2))
        self.blocks = nn.ModuleList(FreeBlock() for _ in range(2))
        self.norm_out = nn.LayerNorm(WIDTH)
        self.out = nn.ConvTranspose2d(WIDTH, 4, 2, stride=2)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> tuple[Tensor]:
        phase = timestep[:, None] * self.frequencies
        time = torch.cat([phase.sin(), phase.cos()], dim=-1)
        x = self.pos_embed(hidden_states)
        for block in self.blocks:
            x = block(x, time)
        height, width = (size // 2 for size in hidden_states.shape[2:])
        return (self.out(self.norm_out(x).transpose(1, 2).unflatten(2, (height, width))),)


def free(dtype: torch.dtype) -> ZooModel:
    model = Free()

    def inputs(step: float, batch: int = 2) -> Inputs:
        return {"hidden_states": torch.empty(0), "timestep": torch.full((batch,), 1000.0 - 20 * step, dtype=dtype)}

    modules = [module for block in model.blocks for module in (block.attention, block.mlp)]
    return ZooModel("free", randomize(model, dtype), inputs, modules, {"attention": 2, "mlp": 2}, 4)


def image_inputs(zoo: ZooModel, step: float, size: Size) -> Inputs:
    """``zoo.inputs`` with latents of another size."""
    batch, height, width = size
    inputs = zoo.inputs(step, batch=batch)
    if zoo.name != "flux":
        return inputs | {"hidden_states": smooth((batch, 4, height, width), step, 0, torch.float64)}
    rows = torch.arange(height * width // 4)
    columns = width // 2
    ids = torch.stack([torch.zeros(len(rows)), rows // columns, rows % columns], dim=1)
    return inputs | {"hidden_states": smooth((batch, len(rows), 4), step, 0, torch.float64), "img_ids": ids}


class Case:
    """A model compiled at both granularities, with a reference for each."""

    def __init__(self, make: Callable[..., ZooModel], dynamic: bool | None) -> None:
        self.zoo = make(torch.float64)
        self.references = [
            HookReference(self.zoo.model, self.zoo.feature_modules, ORDER, **SETTINGS),
            stack_reference(make(torch.float64), ORDER, **SETTINGS),
        ]
        self.backend = BothBackend(BackendConfig(order=ORDER, compiler="eager", **SETTINGS))
        self.compiled = torch.compile(self.zoo.model, backend=self.backend, fullgraph=True, dynamic=dynamic)

    def generate(self, size: Size, mark: Callable[[Inputs], None] = lambda _: None) -> None:
        """A generation of ``size``, every step right and with buffers of its size and no others."""
        for step in range(NUM_STEPS):
            inputs = image_inputs(self.zoo, step, size)
            mark(inputs)
            self.compiled(**inputs)
            (call,) = self.backend.take_calls()
            for output, reference in zip((call.modules[0], call.stack[0]), self.references, strict=True):
                assert relative_error(output, reference(step, inputs)) <= 1e-12, f"step {step} of {size}"
        batch, height, width = size
        image = (ORDER + 1) * batch * (height * width // 4) * WIDTH * 8
        text = (ORDER + 1) * batch * TEXT_LENGTH * WIDTH * 8
        name = self.zoo.name
        assert self.backend.stats().buffer_bytes == NUM_IMAGE_FEATURES[name] * image + NUM_TEXT_FEATURES[name] * text
        assert self.backend.stack.stats().buffer_bytes == image + (name == "flux") * text

    @property
    def compiles(self) -> tuple[int, int]:
        return self.backend.stats().compiles, self.backend.stack.stats().compiles


short_sd3 = partial(sd3, num_layers=2)


@pytest.mark.parametrize("make", in_turns([free, short_sd3, short_flux], weeks=3))
def test_dynamic(make):
    """``dynamic=True``: one graph a step kind for every resolution and batch."""
    case = Case(make, dynamic=True)
    case.generate(SIZES[0])
    with torch.compiler.set_stance("fail_on_recompile"):
        for size in SIZES[1:]:
            case.generate(size)
    assert case.compiles == (2, 2)


def mark_resolution(inputs: Inputs) -> None:
    torch._dynamo.mark_dynamic(inputs["hidden_states"], 2)
    torch._dynamo.mark_dynamic(inputs["hidden_states"], 3)


def mark_batch(inputs: Inputs) -> None:
    for value in inputs.values():
        if isinstance(value, Tensor):
            torch._dynamo.mark_dynamic(value, 0)


@pytest.mark.parametrize(
    ("make", "mark", "sizes"),
    in_turns(
        [
            (short_sd3, mark_resolution, [(5, 8, 12), (5, 12, 8), (5, 10, 10)]),
            (free, mark_batch, [(5, 8, 12), (2, 8, 12), (3, 8, 12)]),
        ],
        weeks=2,
    ),
    ids=["resolution", "batch"],
)
def test_marked(make, mark, sizes):
    """Dimensions marked dynamic in the first generation: one graph a step kind for whatever they become."""
    case = Case(make, dynamic=None)
    case.generate(sizes[0], mark)
    with torch.compiler.set_stance("fail_on_recompile"):
        for size in sizes[1:]:
            case.generate(size)
    assert case.compiles == (2, 2)


def test_static():
    """``dynamic=False``: two graphs a resolution, and none anew for one that was there before."""
    case = Case(free, dynamic=False)
    sizes = SIZES[:2]
    for size in sizes:
        case.generate(size)
    with torch.compiler.set_stance("fail_on_recompile"):
        for size in sizes:
            case.generate(size)
    assert case.compiles == (4, 4)
