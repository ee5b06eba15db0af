"""Calls without names: which stream and step they are, from what real models are given."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taylorseer_fx import TaylorSeerBackend, TaylorSeerWarning, taylorseer_backend
from tests.zoo import dit, randomize, smooth, tiny

SCHEDULE = {"order": 1, "interval": 4, "warmup": 2, "compiler": "eager"}
NUM_STEPS = 12
FULL = 4  # of 12 steps: 0, 1, 5, 9


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def num_calls(backend: TaylorSeerBackend) -> tuple[int, int]:
    return backend.stats().full_calls, backend.stats().forecast_calls


def waves(x: Tensor, width: int = 32) -> Tensor:
    angles = x[..., None].float() * torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], -1)


class Mlp(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(self.norm(x))


class Coordinates(nn.Module):
    """The noisy points themselves enter through sines and cosines, beside the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.blocks, self.leave = nn.Linear(96, 32), nn.Sequential(Mlp(), Mlp()), nn.Linear(32, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.leave(self.blocks(self.enter(torch.cat([waves(x[:, 0]), waves(x[:, 1]), waves(t)], -1))))


class Guided(nn.Module):
    """A guidance scale is embedded as the timestep is, before or after it."""

    def __init__(self, scale_first: bool) -> None:
        super().__init__()
        self.scale_first = scale_first
        self.time, self.scale, self.block = nn.Linear(32, 32), nn.Linear(32, 32), Mlp()

    def forward(self, x: Tensor, t: Tensor, scale: Tensor) -> Tensor:
        embedders = [(self.scale, scale), (self.time, t)]
        for embed, value in embedders if self.scale_first else embedders[::-1]:
            x = x + embed(waves(value))[:, None]
        return self.block(x)


class TimeToken(nn.Module):
    """The sines are a token beside the others, before any weight meets them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Mlp(), Mlp())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.blocks(torch.cat([waves(t)[:, None], x], 1))[:, 1:]


class Table(nn.Module):
    """The timestep picks a row of a table of sines; so does the class."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", waves(torch.arange(1000)))
        self.classes, self.time, self.block = nn.Embedding(4, 32), nn.Linear(32, 32), Mlp()

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.block(x + self.time(self.rows[t] + self.classes(label))[:, None])


class InItsOwnGraph(nn.Module):
    """A break in the loop over the blocks: the function of sines is a graph of its own, the weight in another."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.blocks = nn.Linear(32, 32), nn.ModuleList([Mlp(), Mlp()])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.time(waves(t))
        for block in self.blocks:
            torch._dynamo.graph_break()
            x = block(x + time[:, None])
        return x


def made(model: nn.Module, **settings: Any) -> tuple[TaylorSeerBackend, Callable[..., Tensor]]:
    backend = taylorseer_backend(**SCHEDULE | settings)
    return backend, torch.compile(randomize(model), backend=backend)


def generate(call: Callable[..., Tensor], shape: Sequence[int] = (2, 6, 32), **inputs: Tensor) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for step in range(NUM_STEPS):
        x = x - 0.05 * call(x, torch.full((len(x),), 980 - 40 * step), **inputs)
    return x


class TestTheTime:
    @pytest.mark.parametrize(
        ("model", "inputs"),
        [
            (Coordinates, {"shape": (8, 2)}),
            (lambda: Guided(scale_first=True), {"scale": torch.tensor([3.5, 3.5])}),
            (lambda: Guided(scale_first=False), {"scale": torch.tensor([3.5, 3.5])}),
            (TimeToken, {}),
            (Table, {"label": torch.tensor([1, 2])}),
        ],
        ids=["sample by waves", "guidance first", "guidance last", "token", "table"],
    )
    def test_found(self, model, inputs):
        """Generations follow the schedule, each alike."""
        backend, compiled = made(model())
        first = generate(compiled, **inputs)
        assert num_calls(backend) == (FULL, NUM_STEPS - FULL)
        assert torch.equal(generate(compiled, **inputs), first)
        assert num_calls(backend) == (2 * FULL, 2 * (NUM_STEPS - FULL))

    def test_in_its_own_graph(self):
        backend, compiled = made(InItsOwnGraph())
        with pytest.warns(TaylorSeerWarning, match="does not compile to one graph"):
            first = generate(compiled)
        assert num_calls(backend) == (2 * FULL, 2 * (NUM_STEPS - FULL))
        assert torch.equal(generate(compiled), first)

    @pytest.mark.parametrize("scale_first", [True, False])
    def test_a_scale_that_alternates(self, scale_first):
        """Another in the unconditional call: it tells the streams apart, and is never the time."""
        backend, compiled = made(Guided(scale_first))
        x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1))
        for step in range(NUM_STEPS):
            t = torch.full((2,), 980 - 40 * step)
            cond, uncond = (compiled(x, t, torch.full((2,), scale)) for scale in (7.5, 1.0))
            x = x - 0.05 * (cond + uncond)
        assert num_calls(backend) == (2 * FULL, 2 * (NUM_STEPS - FULL))
        report = backend.explain()
        assert len(report.time_inputs) == 2
        assert len(report.time_taken) == 1
        assert str(report).count("the time, since it moves") == str(report).count(": not the time") == 1


SHAPES: dict[str, Callable[[int], Sequence[str]]] = {
    "from the start to step 5": lambda step: ("cond", "uncond") if step < 5 else ("cond",),
    "from the second step on": lambda step: ("cond", "uncond") if step > 0 else ("cond",),
    "from step 5 on, the other way round": lambda step: ("uncond", "cond") if step >= 5 else ("cond",),
    "in the middle": lambda step: ("cond", "uncond") if 3 <= step < 9 else ("cond",),
    "three calls, then two": lambda step: ("cond", "uncond", "third") if step % 2 == 0 else ("cond", "third"),
}


@pytest.mark.parametrize(("by", "shape"), [*(("identity", shape) for shape in SHAPES), ("value", "in the middle")])
def test_serial_guidance_of_any_shape(shape, by):
    """The same bit for bit as with names and steps: labels made anew for every call, or prompts that are held."""
    if by == "value":
        zoo = dit()
        model, width = zoo.model, (2, 4, 8, 8)
        labels = {"cond": [1, 2], "uncond": [9, 9], "third": [3, 3]}

        def call(function: Callable[..., Any], name: str, x: Tensor, t: Tensor) -> Tensor:
            output = function(hidden_states=x, timestep=t, class_labels=torch.tensor(labels[name]), return_dict=False)[0]
            return output[:, :4]
    else:
        model, width = tiny(), (2, 6, 32)
        names = ("cond", "uncond", "third")
        held = {name: torch.randn(2, 32, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(names)}

        def call(function: Callable[..., Any], name: str, x: Tensor, t: Tensor) -> Tensor:
            return function(x=x, timestep=t.float(), prompt=held[name])

    backend = taylorseer_backend(**SCHEDULE)
    compiled = torch.compile(model, backend=backend, fullgraph=True)

    def run(named: bool) -> tuple[Tensor, tuple[int, int]]:
        backend.reset()
        x = smooth(width, 0, 1, torch.float32)
        for step in range(NUM_STEPS):
            outputs = []
            for name in SHAPES[shape](step):
                if named:
                    with backend.stream("run", step=step), backend.stream(name):
                        outputs.append(call(compiled, name, x, torch.full((2,), 980 - 40 * step)))
                else:
                    outputs.append(call(compiled, name, x, torch.full((2,), 980 - 40 * step)))
            x = x - 0.05 * sum(outputs)
        return x, num_calls(backend)

    (named, wanted), (unnamed, both) = run(True), run(False)
    assert torch.equal(named, unnamed)
    assert both == (2 * wanted[0], 2 * wanted[1])
    assert wanted[1] > 0


@pytest.mark.parametrize("moving", [True, False])
def test_windows_that_nothing_tells_apart(moving):
    """Three windows a step, of the same frames or of others: one warning, and all are executed."""
    model = tiny()
    backend = taylorseer_backend(**SCHEDULE)
    compiled = torch.compile(model, backend=backend, fullgraph=True)

    def run(call: Callable[..., Tensor]) -> Tensor:
        x = torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(1))
        for step in range(6):
            parts = [(torch.arange(8) + 8 * w + 4 * (step % 2) * moving) % 24 for w in range(3)]
            for frames in parts:
                x[:, frames] = x[:, frames] - 0.02 * call(x=x[:, frames], timestep=torch.full((1,), 1000.0 - 50 * step))
        return x

    with pytest.warns(TaylorSeerWarning, match="could not be told apart") as caught:
        outputs = run(compiled)
    assert len(caught) == 1
    torch.testing.assert_close(outputs, run(model), rtol=1e-4, atol=1e-4)
    assert backend.stats().forecast_calls == 0


def test_windows_of_one_tensor():
    """Slices of the latents are told apart by where they begin."""
    backend, compiled = made(tiny())
    x = torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(1))
    for step in range(NUM_STEPS):
        t = torch.full((1,), 1000.0 - 50 * step)
        x = x - 0.02 * torch.cat([compiled(x=x[:, 8 * w : 8 * w + 8], timestep=t) for w in range(3)], 1)
    assert num_calls(backend) == (3 * FULL, 3 * (NUM_STEPS - FULL))
