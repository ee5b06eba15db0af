"""Copies of a backend, of a compiled model, and of a pipeline: the same settings, nothing of the original's state."""

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from taylorseer_fx import TaylorSeerBackend, TaylorSeerWarning, taylorseer_backend
from taylorseer_fx.config import BackendConfig
from tests.pipelines import CASES
from tests.test_attach import FORECAST, FULL, SCHEDULE, TinyPipeline, attached, cached, equal, num_calls, pipeline
from tests.test_pipelines import generate
from tests.warm_worker import Model, run
from tests.zoo import tiny, tiny_inputs

NUM_STEPS = 8


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


ways = pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved])


def compiled_tiny(by_name: bool = False) -> nn.Module:
    if by_name:
        return torch.compile(tiny(), backend="taylorseer", options=SCHEDULE)
    return torch.compile(tiny(), backend=taylorseer_backend(**SCHEDULE))


def generation(model: Callable[..., Tensor], seed: int = 0) -> list[Tensor]:
    return [model(**tiny_inputs(step, seed=seed)).clone() for step in range(NUM_STEPS)]


def in_turns(first: Callable[..., Tensor], second: Callable[..., Tensor], behind: int) -> tuple[list[Tensor], list[Tensor]]:
    """A generation of each, from seeds of their own; the second model is ``behind`` by so many steps."""
    outputs: tuple[list[Tensor], list[Tensor]] = ([], [])
    for step in range(NUM_STEPS + behind):
        for seed, model, at in ((0, first, step), (1, second, step - behind)):
            if 0 <= at < NUM_STEPS:
                outputs[seed].append(model(**tiny_inputs(at, seed=seed)).clone())
    return outputs


class TestModel:
    @pytest.mark.parametrize(
        ("duplicate", "by_name"), [(copy.deepcopy, False), (copy.deepcopy, True), (pickled, True), (saved, False)]
    )
    def test_streams_never_mix(self, duplicate, by_name):
        """Original and copy run in turns, at the same timesteps and at others: each as it does alone."""
        compiled = compiled_tiny(by_name)
        before = duplicate(compiled)
        alone, alone_other = generation(compiled), generation(compiled, seed=1)
        after = duplicate(compiled)
        assert isinstance(after, OptimizedModule)
        assert equal(generation(before), alone)
        for behind in (0, 3):
            first, second = in_turns(compiled, after, behind)
            assert equal(first, alone)
            assert equal(second, alone_other)

    def test_it_forecasts(self):
        """What is equal above is no execution of every step."""
        backend = taylorseer_backend(**SCHEDULE)
        compiled, copied = copy.deepcopy((torch.compile(tiny(), backend=backend), backend))
        generation(compiled)
        assert (copied.stats().full_calls, copied.stats().forecast_calls) == (4, 4)
        assert backend.stats().compiles == 0

    def test_compiled_in_place(self):
        """``module.compile``: plain torch drops that of a copy, which runs eagerly."""
        model = tiny()
        model.compile(backend=taylorseer_backend(**SCHEDULE))
        forecast, eager = generation(model), generation(tiny())
        assert equal(generation(copy.deepcopy(model)), eager)
        assert not equal(forecast, eager)
        assert equal(generation(model), forecast)

    @pytest.mark.turn(1, 2)
    def test_another_process(self):
        """A pool of one process, started afresh: the model goes there pickled, and does there what it does here."""
        backend = taylorseer_backend(**SCHEDULE)
        compiled = torch.compile(Model(), backend=backend)
        expected = run(compiled, None)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            there = pool.submit(run, compiled, None).result(timeout=240)
        assert equal(there, expected)
        assert not equal(there, run(Model(), None))
        assert backend.stats().forecast_calls == 3


class TestBackend:
    SETTINGS: tuple[dict[str, Any], ...] = (
        {"order": 3, "interval": 7, "warmup": 2, "buffer_dtype": torch.bfloat16, "memory_budget": 5, "cuda_graphs": False},
        {"full_steps": (0, 2, 5), "granularity": "stack", "compiler": "eager", "on_no_regions": "warn"},
        {"compiler_options": {"epilogue_fusion": False}},
    )

    @ways
    @pytest.mark.parametrize("settings", SETTINGS, ids=["numbers", "list", "options"])
    def test_settings(self, duplicate, settings):
        backend = taylorseer_backend(**settings)
        assert duplicate(backend).config == backend.config == BackendConfig(**settings)

    def test_nothing_else(self):
        """A used and attached backend: its copy has seen nothing, and is attached to nothing."""
        backend, pipe = attached()
        with backend.stream("a"):
            pipe.transformer(**tiny_inputs(0))
            copied = copy.deepcopy(backend)
        assert copied.stats() == taylorseer_backend(**SCHEDULE).stats()
        assert backend.stats().buffer_bytes > 0
        with pytest.raises(RuntimeError, match="call the compiled model once first"):
            copied.explain()
        copied.detach()
        assert num_calls(backend) == (1, 0)
        pipe()
        assert num_calls(backend) == (1 + FULL, FORECAST)

    def test_warns_anew(self):
        backend = taylorseer_backend(**SCHEDULE)
        compiled = torch.compile(tiny(timed=False), backend=backend)
        for model in (compiled, copy.deepcopy(compiled)):
            with pytest.warns(TaylorSeerWarning, match="the denoising step could not be determined"):
                generation(model)


class TestPipeline:
    def nested(self, outer: TinyPipeline, inner: TinyPipeline, **kwargs: Any) -> tuple[list[Tensor], list[list[Tensor]]]:
        """What ``outer`` generates, and what ``inner`` does in each of its steps."""
        step, made = type(outer.scheduler).step, []

        def step_and_run(*args: Any, **step_kwargs: Any) -> Any:
            made.append(inner(seed=6, num_steps=4))
            return step(outer.scheduler, *args, **step_kwargs)

        outer.scheduler.step = step_and_run
        try:
            return outer(**kwargs), made
        finally:
            del outer.scheduler.step

    @pytest.mark.parametrize(
        ("duplicate", "make", "start"),
        [(copy.deepcopy, cached, attached), (pickled, cached, attached), (copy.deepcopy, tiny, pipeline)],
        ids=["deepcopy", "pickled", "deepcopy, not attached"],
    )
    def test_copies_run_alone(self, duplicate, make, start):
        """Whole runs of the copy in each step of the original's, and the other way round: neither is disturbed."""
        _, pipe = start(make())
        clean, clean_other = pipe(guidance=True), pipe(seed=6, num_steps=4)
        copied = duplicate(pipe)
        for outer, inner in ((pipe, copied), (copied, pipe)):
            outputs, others = self.nested(outer, inner, guidance=True)
            assert equal(outputs, clean)
            assert all(equal(other, clean_other) for other in others)

    def test_the_copy_is_attached_to_nothing(self):
        """Its runs are none of the original's backend; its own can be attached, and detached, as ever."""
        backend, pipe = attached()
        clean = pipe(guidance=True)
        calls = num_calls(backend)
        copied, own = copy.deepcopy((pipe, backend))
        assert isinstance(own, TaylorSeerBackend)
        assert equal(copied(guidance=True), clean)
        assert own.stats().buffer_bytes > 0, "nobody told it that the run was over"
        own.reset()
        own.attach(copied)
        assert equal(copied(guidance=True), clean)
        assert own.stats().buffer_bytes == 0
        own.detach()
        assert equal(copied(guidance=True), clean)
        assert num_calls(backend) == calls
        assert num_calls(own) == (3 * 2 * FULL, 3 * 2 * FORECAST)

    @pytest.mark.parametrize("make", [cached, tiny], ids=["CacheMixin", "without"])
    def test_of_a_model_attached_alone(self, make):
        backend, pipe = pipeline(make())
        backend.attach(pipe.transformer)
        clean = pipe()
        copied = copy.deepcopy(pipe)
        assert equal(self.nested(pipe, copied)[0], clean)
        assert equal(copied(), clean)

    def test_two_backends_on_one(self):
        """An attachment over another: the copy has neither."""
        backend, pipe = attached()
        other = taylorseer_backend(**SCHEDULE)
        other.attach(pipe)
        clean, calls = pipe(), num_calls(backend)
        assert equal(copy.deepcopy(pipe)(), clean)
        assert num_calls(backend) == calls

    def test_of_diffusers(self):
        """A pipeline as diffusers makes it, with conditional and unconditional calls in contexts of their own."""
        case = CASES["wan"]
        pipe = case.build()
        backend = taylorseer_backend(**SCHEDULE)
        pipe.transformer = torch.compile(pipe.transformer, backend=backend)
        backend.attach(pipe)
        clean = generate(case, pipe)
        copied, own = copy.deepcopy((pipe, backend))
        assert torch.equal(generate(case, copied), clean)
        assert torch.equal(generate(case, pipe), clean)
        assert own.stats().forecast_calls * 2 == backend.stats().forecast_calls > 0
