"""Models that do not compile to one graph: several graphs a forward, one graph for several layers, regional compilation."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from taylorseer_fx import NoRegionsError, TaylorSeerBackend, TaylorSeerWarning, taylorseer_backend
from taylorseer_fx.runtime.dispatch import Dispatcher
from tests.reference import HookReference
from tests.test_state import InterruptedRun
from tests.turns import in_turns
from tests.zoo import TinyAttention, flux, randomize, tiny_inputs

NUM_STEPS = 12


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Block(nn.Module):
    """``x + gate * attention(x)``, then ``x + mlp(x)``, with a graph break between them if asked for."""

    def __init__(self, width: int, broken: bool) -> None:
        super().__init__()
        self.broken = broken
        self.gate = nn.Linear(32, width)
        self.attention = TinyAttention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = x + self.gate(time)[:, None] * self.attention(x)
        if self.broken:
            torch._dynamo.graph_break()
        return x + self.mlp(x)


class TimeEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, -2, 16))
        self.project = nn.Linear(32, 32)

    def forward(self, timestep: Tensor, prompt: Tensor | None = None) -> Tensor:
        phase = timestep[:, None] * self.frequencies
        time = self.project(torch.cat([phase.sin(), phase.cos()], dim=-1))
        return time if prompt is None else time + prompt


class Broken(nn.Module):
    """Three blocks behind a time embedding. ``where``: "nowhere", "loop" (around the blocks), "block" (inside each), or "middle"
    (once, before the last block); ``order`` of the blocks in a forward, by number.
    """

    def __init__(self, where: str = "nowhere", order: tuple[int, ...] = (0, 1, 2), width: int = 32) -> None:
        super().__init__()
        self.where, self.order = where, order
        self.embed = TimeEmbedding()
        self.blocks = nn.ModuleList(Block(width, where == "block") for _ in range(3))

    def forward(self, x: Tensor, timestep: Tensor, prompt: Tensor | None = None) -> Tensor:
        time = self.embed(timestep, prompt)
        *numbers, last = self.order
        for number in numbers:
            if self.where == "loop":
                torch._dynamo.graph_break()
            x = self.blocks[number](x, time)
        if self.where == "middle":
            torch._dynamo.graph_break()
        return self.blocks[last](x, time)

    @property
    def feature_modules(self) -> list[nn.Module]:
        return [module for block in self.blocks for module in (block.attention, block.mlp)]


def broken(where: str, **settings: Any) -> Broken:
    model = Broken(where, **settings)
    randomize(model)
    return model


def make(model: nn.Module, **settings: Any) -> tuple[TaylorSeerBackend, Callable[..., Tensor]]:
    backend = taylorseer_backend(**{"order": 2, "interval": 3, "warmup": 2, "compiler": "eager"} | settings)
    return backend, torch.compile(model, backend=backend)


def make_reference(model: Broken) -> HookReference:
    return HookReference(model, model.feature_modules, order=2, interval=3, warmup=2)


def inputs_of(seed: int = 0, **kwargs: Any) -> list[dict[str, Tensor]]:
    return [tiny_inputs(step, seed=seed, num_steps=NUM_STEPS, **kwargs) for step in range(NUM_STEPS)]


def generate(compiled: Callable[..., Tensor], **kwargs: Any) -> list[Tensor]:
    return [compiled(**inputs).clone() for inputs in inputs_of(**kwargs)]


def expected(model: Broken, **kwargs: Any) -> list[Tensor]:
    reference = make_reference(model)
    return [reference(step, inputs) for step, inputs in enumerate(inputs_of(**kwargs))]


def assert_close(actual: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


BREAKS = ["nowhere", "loop", "block", "middle"]


@pytest.mark.filterwarnings("ignore::taylorseer_fx.TaylorSeerWarning")
@pytest.mark.parametrize("where", in_turns(BREAKS, weeks=2))
class TestBreaks:
    def test_follows_the_reference(self, where):
        """The clock ticks once a forward, wherever it is broken; each layer has its own derivatives; generations repeat."""
        model = broken(where)
        backend, compiled = make(model)
        wanted = expected(model)
        first = generate(compiled)
        assert_close(first, wanted)
        with torch.compiler.set_stance("fail_on_recompile"):
            generate(compiled, seed=4)
            assert equal(generate(compiled), first)
        stats = backend.stats()
        assert stats.streams == 1
        assert stats.unforecast_calls == 0
        assert stats.full_calls / stats.forecast_calls == pytest.approx(5 / 7)  # 0, 1, 4, 7, 10 of 12

    def test_serial_guidance(self, where):
        model = broken(where)
        backend, compiled = make(model)
        together: tuple[list[Tensor], list[Tensor]] = ([], [])
        for pair in zip(inputs_of(0, prompt=1), inputs_of(1, prompt=2), strict=True):
            for outputs, inputs in zip(together, pair, strict=True):
                outputs.append(compiled(**inputs).clone())
        assert_close(together[0], expected(model, seed=0, prompt=1))
        assert_close(together[1], expected(model, seed=1, prompt=2))
        assert backend.stats().streams == 2

    def test_guidance_with_other_lengths(self, where):
        """The unconditional call has another length: Dynamo compiles it again, and every layer is still known."""
        model = broken(where)
        backend, compiled = make(model)
        for _ in range(2):
            together: tuple[list[Tensor], list[Tensor]] = ([], [])
            for pair in zip(inputs_of(0, length=6), inputs_of(1, length=9), strict=True):
                for outputs, inputs in zip(together, pair, strict=True):
                    outputs.append(compiled(**inputs).clone())
            assert_close(together[0], expected(model, seed=0, length=6))
            assert_close(together[1], expected(model, seed=1, length=9))
        assert backend.stats().streams == 2

    def test_named_streams_in_turns(self, where):
        model = broken(where)
        backend, compiled = make(model)
        together: dict[int, list[Tensor]] = {0: [], 1: []}
        for step in range(NUM_STEPS):
            for seed in (0, 1, 1, 0) if step % 2 == 0 and step + 1 < NUM_STEPS else ():
                with backend.stream(str(seed)):
                    position = len(together[seed])
                    together[seed].append(compiled(**inputs_of(seed)[position]).clone())
        assert_close(together[0], expected(model, seed=0))
        assert_close(together[1], expected(model, seed=1))

    @pytest.mark.parametrize("at_call", [2, 8])
    def test_interrupted(self, where, at_call, monkeypatch):
        """A generation broken off, perhaps in mid-forward between two graphs, leaves no trace."""
        _, compiled = make(broken(where))
        clean = generate(compiled)
        with monkeypatch.context() as patch:
            patch.setattr(Dispatcher, "_run", InterruptedRun(Dispatcher._run, at_call, after=True))
            with pytest.raises(KeyboardInterrupt):
                generate(compiled, seed=3)
        assert equal(generate(compiled), clean)


@pytest.mark.filterwarnings("ignore::taylorseer_fx.TaylorSeerWarning")
@pytest.mark.parametrize("where", ["loop", "block"])
def test_a_layer_called_twice(where):
    """Layer 1 runs twice in a forward: two places, each with derivatives of its own, on the same weights."""
    model = broken(where, order=(0, 1, 1, 2))
    backend, compiled = make(model)
    unrolled = broken(where, order=(0, 1, 2, 3))
    unrolled.blocks.insert(1, Block(32, where == "block"))
    for i, j in enumerate((0, 1, 1, 2)):
        unrolled.blocks[i].load_state_dict(model.blocks[j].state_dict())
    unrolled.embed.load_state_dict(model.embed.state_dict())
    assert_close(generate(compiled), expected(unrolled))
    assert backend.stats().unforecast_calls == 0


def test_one_graph_serves_all_layers():
    """With a break in the loop, Dynamo compiles the block once; the weights tell the layers apart."""
    backend, compiled = make(broken("loop"))
    with pytest.warns(TaylorSeerWarning, match="the model does not compile to one graph"):
        generate(compiled)
    report = backend.explain()
    assert [(entry.num_features, entry.num_layers, entry.takes_time) for entry in report.graphs] == [(0, 0, True), (2, 3, False)]
    assert "no regions" in str(backend.explain(graph=0))
    assert "none in this graph; the step comes from the graph above that takes the timestep" in str(report)


@pytest.mark.filterwarnings("ignore::taylorseer_fx.TaylorSeerWarning")
def test_the_breaking_line_is_told():
    backend, compiled = make(broken("middle"))
    generate(compiled)
    ends = [entry.ends_at for entry in backend.explain().graphs]
    assert len(ends) == 2
    assert "test_graph_breaks.py" in ends[0]
    assert "torch._dynamo.graph_break()" in ends[0]
    assert ends[1] == "return"


class CutBranch(Broken):
    """The break falls between the attention and its residual add."""

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        time = self.embed(timestep)
        x = self.blocks[0](x, time)
        branch = self.blocks[1].attention(x)
        torch._dynamo.graph_break()
        return self.blocks[2](x + branch, time)


def test_a_branch_beyond_the_break_is_reported():
    """It is executed in every step, exactly, and ``explain`` names it and the breaking line."""
    model = CutBranch()
    randomize(model)
    backend, compiled = make(model)
    reference = HookReference(model, [m for m in model.feature_modules if m is not model.blocks[1].attention], 2, 3, 2)
    with pytest.warns(TaylorSeerWarning, match="blocks.1.attention: a graph break lies between"):
        assert_close(generate(compiled), [reference(step, inputs) for step, inputs in enumerate(inputs_of())])
    (leaving,), (arriving,) = (backend.explain(graph=i).rejected for i in range(2))
    assert leaving.path == "blocks.1.attention"
    assert leaving.reason.name == arriving.reason.name == "BEYOND_BREAK"
    assert leaving.detail.endswith("torch._dynamo.graph_break()")
    assert arriving.detail.endswith("return self.blocks[2](x + branch, time)")


class TestEntries:
    """The ways to compile a model other than ``torch.compile(model)``."""

    def test_module_compile(self):
        model = broken("nowhere")
        wanted = expected(model)
        backend = taylorseer_backend(order=2, interval=3, warmup=2, compiler="eager")
        model.compile(backend=backend, fullgraph=True)
        first = generate(model)
        assert_close(first, wanted)
        assert equal(generate(model), first)
        assert backend.stats().graphs == 1

    def test_repeated_blocks(self):
        """Regional compilation of FLUX: fewer graphs than its four layers. None takes the timestep, so the step must be said."""
        entry = flux()
        reference = HookReference(entry.model, entry.feature_modules, order=2, interval=3, warmup=2)
        wanted = [reference(step, entry.inputs(4 * step)) for step in range(NUM_STEPS)]
        backend = self.compile_blocks(entry.model)
        for _ in range(2):
            outputs = []
            for step in range(NUM_STEPS):
                with backend.stream("generation", step=step):
                    outputs.append(entry.model(**entry.inputs(4 * step))[0])
            assert_close(outputs, wanted)
        layers = [entry.num_layers for entry in backend.explain().graphs]
        assert sum(layers) == 4
        assert max(layers) == 2
        assert backend.stats().streams == 1

    def test_repeated_blocks_without_a_step(self):
        """Nothing tells the steps apart: every one is executed, exactly, and the way out is told."""
        entry = flux()
        wanted = [entry.model(**entry.inputs(step))[0] for step in range(3)]
        backend = self.compile_blocks(entry.model)
        with pytest.warns(TaylorSeerWarning, match=r"backend.attach\(pipe\)"):
            assert_close([entry.model(**entry.inputs(step))[0] for step in range(3)], wanted)
        assert backend.stats().forecast_calls == 0

    def compile_blocks(self, model: FluxTransformer2DModel) -> TaylorSeerBackend:
        backend = taylorseer_backend(order=2, interval=3, warmup=2, compiler="eager")
        model.compile_repeated_blocks(backend=backend, fullgraph=True)
        return backend


def test_a_timestep_that_stands_still():
    """More forwards at one timestep than guidance ever makes: nothing is forecast from it, and memory does not grow."""
    model = broken("nowhere")
    backend, compiled = make(model)
    with pytest.warns(TaylorSeerWarning, match="stood still"):
        assert_close([compiled(**inputs_of()[0]) for _ in range(20)], [model(**inputs_of()[0])] * 20)
    assert backend.stats().streams == 1
    assert backend.stats().forecast_calls == 0


def test_a_whole_model_without_regions_is_an_error():
    """But not a part of a broken one, which has them elsewhere."""
    _, compiled = make(TimeEmbedding())
    with pytest.raises(Exception, match="no attention or MLP") as caught:
        compiled(torch.ones(2))
    assert isinstance(caught.value, NoRegionsError) or "NoRegionsError" in str(caught.value)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        generate(make(broken("loop"))[1])
    assert len(said) == 1


def test_weights_made_anew_each_forward():
    """Hooks that load weights from elsewhere, as sequential offload does: no layer is known again, so nothing is forecast from
    another one's state, and what is kept for a layer that is gone is freed.
    """
    model = broken("nowhere")
    backend, compiled = make(model)
    wanted = [model(**inputs) for inputs in inputs_of()]
    sizes, kept = [], []

    def call(inputs: dict[str, Tensor]) -> Tensor:
        kept.extend(model.blocks.parameters())  # or a new one might be made in the place of an old one
        for module in model.blocks.modules():
            for name, parameter in list(module._parameters.items()):
                module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
        output = compiled(**inputs).clone()
        sizes.append(backend.stats().buffer_bytes)
        return output

    with pytest.warns(TaylorSeerWarning, match="a part of the model that was not called before"):
        assert_close([call(inputs) for inputs in inputs_of()], wanted)
    assert max(sizes) <= 3 * sizes[0]
