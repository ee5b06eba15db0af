"""Streams and generations: who may see whose derivatives, what starts anew when, and that nothing of it recompiles."""

import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taylorseer_fx import NoRegionsError, TaylorSeerBackend, TaylorSeerWarning, taylorseer_backend
from taylorseer_fx.runtime.dispatch import Dispatcher
from tests.reference import HookReference
from tests.zoo import Tiny, randomize, tiny, tiny_inputs

Outputs = list[Tensor]
NUM_STEPS = 14


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


pytestmark = pytest.mark.usefixtures("no_grad")


def make(model: nn.Module | None = None, **settings: Any) -> tuple[TaylorSeerBackend, Callable[..., Tensor]]:
    backend = taylorseer_backend(**{"order": 2, "interval": 3, "warmup": 2, "compiler": "eager"} | settings)
    return backend, torch.compile(model if model is not None else tiny(), backend=backend, fullgraph=True)


def make_reference(model: Tiny | None = None) -> HookReference:
    model = model if model is not None else tiny()
    return HookReference(model, [model.attention, model.mlp], order=2, interval=3, warmup=2)


def generate(compiled: Callable[..., Tensor], num_steps: int = NUM_STEPS, **inputs: Any) -> Outputs:
    return [compiled(**tiny_inputs(step, num_steps=num_steps, **inputs)).clone() for step in range(num_steps)]


def equal(left: Iterable[Tensor], right: Iterable[Tensor]) -> bool:
    """Bit for bit, and as many."""
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def assert_close(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.detach().abs().max()))


# Generations


@pytest.mark.parametrize("compiler", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)])
def test_generations_repeat(compiler):
    """The same inputs give the same outputs in every generation, bit for bit, whatever ran in between or was broken off."""
    backend, compiled = make(compiler=compiler)
    first = generate(compiled)
    assert equal(generate(compiled), first)
    generate(compiled, num_steps=23, seed=5)
    for step in range(6):
        compiled(**tiny_inputs(step, seed=9))
    assert equal(generate(compiled), first)
    backend.reset()
    assert equal(generate(compiled), first)
    assert_close(first, [reference(step, inputs) for reference in [make_reference()] for step, inputs in enumerate_inputs()])
    assert backend.stats().compiles == 2


def enumerate_inputs(num_steps: int = NUM_STEPS, **inputs: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((step, tiny_inputs(step, num_steps=num_steps, **inputs)) for step in range(num_steps))


def test_forecasting_takes_place():
    """These tests are about forecasts: most steps are, and their outputs are not the model's."""
    model = tiny()
    backend, compiled = make(model)
    differs = [not torch.allclose(compiled(**inputs), model(**inputs), rtol=1e-3) for _, inputs in enumerate_inputs()]
    assert differs == [not make_reference().is_full(step) for step in range(NUM_STEPS)]
    assert backend.stats().forecast_calls == sum(differs) > NUM_STEPS / 2


@pytest.mark.parametrize("settings", [{}, {"full_steps": (0, 1, 4, 5, 6, 11, 16, 21)}, {"order": 4, "warmup": 1, "interval": 4}])
def test_nothing_recompiles(settings):
    """One Dynamo graph, no graph break, two compiles: orders forming, uneven gaps, streams, steps and lengths are data."""
    if "full_steps" in settings:
        settings = {"order": 3, "interval": 5, "warmup": 3} | settings
    backend, compiled = make(**settings)
    compiled(**tiny_inputs(0))
    backend.reset()  # or the next call would be the second one at the first timestep: guidance
    with torch.compiler.set_stance("fail_on_recompile"):
        generate(compiled)
        generate(compiled, num_steps=25, seed=1)
        with backend.stream("named"):
            generate(compiled)
        for step in range(8):
            with backend.stream("stepped", step=step):
                compiled(**tiny_inputs(step))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    stats = backend.stats()
    assert (stats.compiles, stats.graphs, stats.streams) == (2, 1, 3)
    assert stats.full_calls + stats.forecast_calls == 1 + 14 + 25 + 14 + 8


def test_ascending_timesteps():
    """A sampler whose timesteps grow is followed all the same, and its second generation is recognised."""
    backend, compiled = make()
    reference = make_reference()
    ups = [inputs | {"timestep": 1000 - inputs["timestep"]} for _, inputs in enumerate_inputs()]
    expected = [reference(step, inputs) for step, inputs in enumerate(ups)]
    for _ in range(2):
        assert_close([compiled(**inputs) for inputs in ups], expected)
    assert backend.stats().forecast_calls == 2 * sum(not reference.is_full(step) for step in range(NUM_STEPS))


def test_heun_repeats_later_timesteps():
    """A sampler that calls twice at every timestep but the first: each call is a step of its own, on one stream."""
    backend, compiled = make()
    reference = make_reference()
    times = [0, *(t for t in range(1, 8) for _ in range(2))]
    calls = [tiny_inputs(i / 2) | {"timestep": tiny_inputs(t)["timestep"]} for i, t in enumerate(times)]
    assert_close([compiled(**call) for call in calls], [reference(i, call) for i, call in enumerate(calls)])
    assert backend.stats().streams == 1


# Streams


def test_serial_guidance():
    """Two calls a timestep, conditional and unconditional, equal two runs of one call each, bit for bit."""
    backend, compiled = make()
    apart = []
    for seed in (0, 1):
        apart.append(generate(compiled, seed=seed, prompt=float(seed)))
        backend.reset()
    together: tuple[Outputs, Outputs] = ([], [])
    for step in range(NUM_STEPS):
        for seed in (0, 1):
            inputs = tiny_inputs(step, seed=seed, num_steps=NUM_STEPS, prompt=float(seed))
            together[seed].append(compiled(**inputs).clone())
    assert equal(together[0], apart[0])
    assert equal(together[1], apart[1])
    assert backend.stats().streams == 2


def test_serial_guidance_with_heun():
    """Guidance and repeated timesteps at once: the rounds of a timestep are steps, the calls of a round are streams."""
    backend, compiled = make()
    references = make_reference(), make_reference()
    times = [0, *(t for t in range(1, 6) for _ in range(2))]
    for i, t in enumerate(times):
        for seed, reference in enumerate(references):
            call = tiny_inputs(i / 2, seed=seed, prompt=float(seed)) | {"timestep": tiny_inputs(t)["timestep"]}
            assert_close([compiled(**call)], [reference(i, call)])
    assert backend.stats().streams == 2


@pytest.mark.parametrize("with_step", [False, True])
def test_interleaved_streams(with_step):
    """Two named streams taking turns unevenly equal the same two run apart, bit for bit."""
    backend, compiled = make()
    apart = {}
    for seed, name in enumerate("ab"):
        with backend.stream(name):
            apart[name] = generate(compiled, seed=seed)
    backend.reset()
    together: dict[str, Outputs] = {"a": [], "b": []}
    turns = list("ab" * NUM_STEPS)
    random.Random(0).shuffle(turns)
    for name in turns:
        step = len(together[name])
        with backend.stream(name, step=step if with_step else None):
            together[name].append(compiled(**tiny_inputs(step, seed="ab".index(name), num_steps=NUM_STEPS)).clone())
    assert equal(together["a"], apart["a"])
    assert equal(together["b"], apart["b"])


def test_stream_step_begins_generations():
    """With explicit steps, going back to step 0 begins a new generation, equal to the first."""
    backend, compiled = make()

    def run() -> Outputs:
        outputs = []
        for step, inputs in enumerate_inputs():
            with backend.stream("request", step=step):
                outputs.append(compiled(**inputs).clone())
        return outputs

    assert equal(run(), run())
    assert backend.stats().streams == 1


def test_threads():
    """Two threads, each in a stream of its own, equal the two runs one after the other."""
    backend, compiled = make()
    apart = []
    for seed in (0, 1):
        with backend.stream(str(seed)):
            apart.append(generate(compiled, seed=seed))
    backend.reset()
    barrier = Barrier(2)

    def run(seed: int) -> Outputs:
        outputs = []
        with torch.no_grad(), backend.stream(str(seed)):
            for _, inputs in enumerate_inputs(seed=seed):
                barrier.wait(timeout=60)
                outputs.append(compiled(**inputs).clone())
        return outputs

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, (0, 1)))
    assert equal(together[0], apart[0])
    assert equal(together[1], apart[1])
    assert backend.stats().streams == 2


# Broken generations


class InterruptedRun:
    """Stands before ``Dispatcher._run`` and interrupts its n-th call, before or after the variant wrote its buffers."""

    def __init__(self, original: Any, at_call: int, after: bool) -> None:
        self.original, self.calls_left, self.after = original, at_call, after

    def __get__(self, dispatcher: Dispatcher, owner: type) -> Any:
        def run(*args: Any) -> Any:
            self.calls_left -= 1
            if self.calls_left == 0 and not self.after:
                raise KeyboardInterrupt
            outputs = self.original(dispatcher, *args)
            if self.calls_left == 0:
                raise KeyboardInterrupt
            return outputs

        return run


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("at_call", [1, 5, 6])  # the first step, a full one and a forecast one
def test_interrupted_generation(monkeypatch, at_call, after, reset):
    """An interrupt in mid-generation, with or without ``reset()``, leaves no trace in the next generation."""
    backend, compiled = make()
    clean = generate(compiled)
    with monkeypatch.context() as patch:
        patch.setattr(Dispatcher, "_run", InterruptedRun(Dispatcher._run, at_call, after))
        with pytest.raises(KeyboardInterrupt):
            generate(compiled, seed=3)
    if reset:
        backend.reset()
    assert equal(generate(compiled), clean)


def test_bad_input_in_mid_generation():
    """A call that fails inside the model (a width that does not fit) does no harm after ``reset()``."""
    backend, compiled = make()
    clean = generate(compiled)
    for step in range(7):
        compiled(**tiny_inputs(step, seed=3))
    with pytest.raises(RuntimeError):
        compiled(x=torch.zeros(2, 6, 31), timestep=tiny_inputs(7)["timestep"])
    backend.reset()
    assert equal(generate(compiled), clean)


def test_reset_lets_a_generation_begin_later():
    """After ``reset()`` the next call is step 0, even where its timestep goes on in the old direction."""
    backend, compiled = make()
    later = [tiny_inputs(step) for step in range(20, 30)]
    clean = [compiled(**inputs).clone() for inputs in later]
    backend.reset()
    for step in range(6):
        compiled(**tiny_inputs(step, seed=3))
    backend.reset()
    assert equal([compiled(**inputs) for inputs in later], clean)


@pytest.mark.parametrize("reset", [True, False])
def test_nan_does_not_leak(reset):
    """NaNs in all buffers of a broken generation are gone from the next one (zero weights alone would keep them: 0 * NaN)."""
    backend, compiled = make()
    clean = generate(compiled)
    for step in range(9):
        inputs = tiny_inputs(step)
        output = compiled(**inputs | {"x": inputs["x"] * float("nan")})
    assert output.isnan().all()
    if reset:
        backend.reset()
    assert equal(generate(compiled), clean)


def test_one_step_generation_before():
    """After a generation of one step (to warm up), ``reset()`` keeps the next one clean: both begin at the same timestep."""
    backend, compiled = make()
    clean = generate(compiled)
    compiled(**tiny_inputs(0, seed=3))
    backend.reset()
    assert equal(generate(compiled), clean)


def test_one_step_generation_before_without_reset():
    """A second call at the first timestep begins anew, so without ``reset()`` the generation is the same."""
    backend, compiled = make()
    clean = generate(compiled)
    backend.reset()
    compiled(**tiny_inputs(0, seed=3))
    assert equal(generate(compiled), clean)
    assert backend.stats().streams == 1


def test_lone_call_before_at_a_lower_timestep():
    """A call to warm up at some lower timestep, then a generation with warm-up 1: its first step is executed, not forecast."""
    model = tiny()
    backend, compiled = make(model, warmup=1)
    compiled(**tiny_inputs(9, seed=3))
    assert_close([compiled(**tiny_inputs(0))], [model(**tiny_inputs(0))])
    assert backend.stats().forecast_calls == 0


# Changes in mid-generation


def test_batch_changes_in_mid_generation():
    """One warning; then the new shape has a warm-up of its own and is forecast right. The next generation is not affected.

    To rounding: Dynamo has gone over to a graph for any batch, in which products of few rows are written another way.
    """
    _, compiled = make()
    clean = generate(compiled)
    for step in range(7):
        compiled(**tiny_inputs(step))
    reference = make_reference()
    changed = [tiny_inputs(step, batch=3) for step in range(7, 16)]
    with pytest.warns(TaylorSeerWarning, match="at step 7 of a generation") as caught:
        outputs = [compiled(**inputs) for inputs in changed]
    assert len(caught) == 1
    assert_close(outputs, [reference(step, inputs) for step, inputs in enumerate(changed)])
    assert_close(generate(compiled), clean)


@pytest.mark.parametrize("dynamic", [None, False])
def test_resolutions_by_turns(dynamic):
    """Generations of several sizes, one after another: each is right, and coming back to an old size recompiles nothing."""
    model = tiny()
    backend = taylorseer_backend(order=2, interval=3, warmup=2, compiler="eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)
    for length in (6, 9, 12):
        reference = make_reference(model)
        assert_close(generate(compiled, length=length), [reference(*step) for step in enumerate_inputs(length=length)])
    with torch.compiler.set_stance("fail_on_recompile"):
        for length in (9, 6, 12):
            reference = make_reference(model)
            assert_close(generate(compiled, length=length), [reference(*step) for step in enumerate_inputs(length=length)])
    assert backend.stats().streams == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_modes(mode):
    """Forecasts are right under ``no_grad`` and ``inference_mode``, and a generation under one leaves the other unharmed."""
    model = tiny()
    reference = make_reference(model)
    expected = [reference(*step) for step in enumerate_inputs()]
    _, compiled = make(model)
    for context in (mode, torch.no_grad, torch.inference_mode, mode):
        with context():
            assert_close(generate(compiled), expected)


def test_grad_mode_changes_in_mid_generation():
    """A generation that moves between ``no_grad`` and ``inference_mode``: Dynamo compiles it twice, the derivatives go on."""
    backend, compiled = make()
    clean = generate(compiled)
    outputs = []
    for step, inputs in enumerate_inputs():
        with torch.inference_mode(step % 6 > 2):
            outputs.append(compiled(**inputs).clone())
    assert equal(outputs, clean)
    assert backend.stats().graphs > 1


def test_gradients_switch_forecasting_off():
    """Where gradients are wanted, one warning, then every step is the plain model's, and can be differentiated."""
    model = tiny().requires_grad_(True)
    backend, compiled = make(model)
    with torch.enable_grad():
        with pytest.warns(TaylorSeerWarning, match="gradients are enabled") as caught:
            outputs = [compiled(**inputs) for _, inputs in enumerate_inputs()]
        assert_close(outputs, [model(**inputs) for _, inputs in enumerate_inputs()])
        outputs[-1].sum().backward()
    assert len(caught) == 1
    assert model.mlp[0].weight.grad.abs().sum() > 0
    assert backend.stats().forecast_calls == 0


# Models that cannot be forecast, or not without help


class Pointwise(nn.Module):
    """A residual model with no matrix product in its branch."""

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return x + x.tanh() * timestep[:, None, None]


def test_no_regions_is_an_error():
    """Nothing to forecast is said aloud when the model is compiled."""
    _, compiled = make(Pointwise())
    with pytest.raises(NoRegionsError):
        compiled(**tiny_inputs(0))


def test_no_regions_as_a_warning():
    """With ``on_no_regions="warn"`` the model runs as it is, after one warning."""
    model = Pointwise()
    backend, compiled = make(model, on_no_regions="warn")
    with pytest.warns(TaylorSeerWarning, match="no attention or MLP") as caught:
        outputs = generate(compiled)
    assert len(caught) == 1
    assert_close(outputs, generate(model))
    assert backend.stats().forecast_calls == 0


def test_no_timestep():
    """A model without a time input runs every step in full, warned of once; ``stream(name, step=i)`` makes it forecast."""
    model = tiny(timed=False)
    backend, compiled = make(model)
    with pytest.warns(TaylorSeerWarning, match="the denoising step could not be determined") as caught:
        assert_close(generate(compiled), generate(model))
    assert len(caught) == 1
    assert backend.stats().forecast_calls == 0
    assert backend.stats().unforecast_calls == NUM_STEPS
    reference = make_reference(model)
    for step, inputs in enumerate_inputs():
        with backend.stream("steps", step=step):
            assert_close([compiled(**inputs)], [reference(step, inputs)])
    assert backend.stats().forecast_calls > 0


class WithPositions(Tiny):
    """``Tiny`` behind sinusoidal positions and a projection: sines and cosines that have nothing to do with time."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(32, 32)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        phase = torch.arange(x.shape[1])[:, None] * self.frequencies
        return super().forward(self.project(x + torch.cat([phase.sin(), phase.cos()], dim=-1)), timestep)


def test_positions_are_no_time():
    """Positions embedded by sine and cosine do not make a clock of the latents: the generation is followed as ever."""
    model = WithPositions()
    randomize(model)
    backend, compiled = make(model)
    reference = make_reference(model)
    assert_close(generate(compiled), [reference(*step) for step in enumerate_inputs()])
    assert len(backend.explain().time_inputs) == 1


def test_registered_name():
    """``backend="taylorseer"`` with options is the same backend as the object, bit for bit."""
    model = tiny()
    options = {"order": 2, "interval": 3, "warmup": 2, "compiler": "eager"}
    by_name = torch.compile(model, backend="taylorseer", options=options)
    _, by_object = make(model)
    assert equal(generate(by_name), generate(by_object))
