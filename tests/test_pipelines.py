"""Whole diffusers pipelines: what schedulers, guidance and the loops around the transformer make of the backend."""

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, TaylorSeerCacheConfig
from torch import Tensor, nn

from taylorseer_fx import TaylorSeerBackend, TaylorSeerWarning, taylorseer_backend
from tests.pipelines import CASES
from tests.pipelines.zoo import PipelineCase
from tests.reference import HookReference
from tests.turns import in_turns

# What Inductor says of rotary embeddings as complex numbers (Qwen-Image, Z-Image), whoever compiles them.
pytestmark = pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators:UserWarning")

NUM_STEPS = 9
SCHEDULE = {"order": 1, "interval": 3, "warmup": 2}
FULL_STEPS = (0, 1, 4, 7)


def compile_transformer(pipe: DiffusionPipeline, **settings: Any) -> TaylorSeerBackend:
    backend = taylorseer_backend(compiler="eager", **settings)
    pipe.transformer = torch.compile(pipe.transformer, backend=backend)
    backend.attach(pipe)
    return backend


def generate(case: PipelineCase, pipe: DiffusionPipeline, seed: int = 0, num_steps: int = NUM_STEPS) -> Tensor:
    return pipe(**case.kwargs(num_steps, seed))[0]


@contextmanager
def by_reference(case: PipelineCase, transformer: nn.Module, **schedule: Any) -> Iterator[None]:
    """Inside, the eager transformer forecasts by ``HookReference``, for one generation.

    The calls of a step are streams of their own, told apart by their order, and the steps are counted here: nothing is taken
    from timesteps or from the names that the pipeline gives.
    """
    forward = transformer.forward
    reference = HookReference(transformer, case.feature_modules(transformer), **schedule)
    num_calls = 0

    def reference_forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_calls
        step, stream = divmod(num_calls, case.num_streams)
        num_calls += 1
        reference.model = partial(forward, *args)
        output = reference(step, kwargs, stream)
        return output if kwargs.get("return_dict", True) else (output,)

    transformer.forward = reference_forward
    try:
        yield
    finally:
        del transformer.forward


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@contextmanager
def at_each_step(pipe: DiffusionPipeline, action: Callable[[], Any]) -> Iterator[None]:
    """Inside, ``action`` is called when the transformer is done with a step."""
    scheduler_step = pipe.scheduler.step

    def step(*args: Any, **kwargs: Any) -> Any:
        action()
        return scheduler_step(*args, **kwargs)

    pipe.scheduler.step = step
    try:
        yield
    finally:
        del pipe.scheduler.step


def warning_of(case: PipelineCase) -> AbstractContextManager[Any]:
    if case.graph_breaks:
        return pytest.warns(TaylorSeerWarning, match="does not compile to one graph")
    return nullcontext()


@pytest.mark.parametrize("name", in_turns(CASES, weeks=5))
def test_pipeline(name):
    """Calls as scheduled, equal to the hook reference; the same again in a second generation, and in a third one for which
    nothing but the timesteps tells streams and steps. Only the first compiles.
    """
    case = CASES[name]
    pipe = case.build()
    plain = generate(case, pipe)
    with by_reference(case, pipe.transformer, **SCHEDULE):
        expected = generate(case, pipe)
    backend = compile_transformer(pipe, **SCHEDULE)
    streams: set[int] = set()
    with at_each_step(pipe, lambda: streams.add(backend.stats().streams)):
        with warning_of(case):
            first = generate(case, pipe)
        with torch.compiler.set_stance("fail_on_recompile"):
            second = generate(case, pipe)
            backend.detach()
            third = generate(case, pipe)
    assert_close(first, expected)
    assert not torch.allclose(first, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))
    assert torch.equal(second, first)
    assert torch.equal(third, first)
    assert streams == {case.num_streams}
    assert_calls(backend, num_runs=3 * case.num_streams)


def assert_calls(backend: TaylorSeerBackend, num_runs: int) -> None:
    """Full and forecast calls of that many runs of one stream; of a model with graph breaks, one graph holds all regions."""
    stats = backend.stats()
    assert stats.full_calls == num_runs * len(FULL_STEPS)
    assert stats.forecast_calls == num_runs * (NUM_STEPS - len(FULL_STEPS))
    assert stats.unforecast_calls == 0


@pytest.mark.parametrize("name", in_turns(["flux-true-cfg", "wan", "qwen-image"], weeks=3))
def test_regional_compilation(name):
    """``compile_repeated_blocks``: no compiled graph takes the timestep, so the attached pipeline's scheduler tells the step, and
    its contexts the stream. Equal to the model compiled as a whole.
    """
    case = CASES[name]
    whole = case.build()
    compile_transformer(whole, **SCHEDULE)
    expected = generate(case, whole)
    pipe = case.build()
    backend = taylorseer_backend(compiler="eager", **SCHEDULE)
    pipe.transformer.compile_repeated_blocks(backend=backend, fullgraph=True)
    backend.attach(pipe)
    first = generate(case, pipe)
    assert_close(first, expected)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(generate(case, pipe), first)
    assert backend.stats().unforecast_calls == 0
    assert backend.stats().forecast_calls * len(FULL_STEPS) == backend.stats().full_calls * (NUM_STEPS - len(FULL_STEPS))


def test_late_garbage_collection():
    """The progress bar of a run is a part of cycles, and closes once more when it is collected: that ends no later run."""
    case = CASES["ltx"]
    pipe = case.build()
    backend = compile_transformer(pipe, **SCHEDULE)
    gc.freeze()  # what there is by now need not be searched at each step
    try:
        first = generate(case, pipe)
        with at_each_step(pipe, gc.collect):
            assert torch.equal(generate(case, pipe), first)
    finally:
        gc.unfreeze()
    assert_calls(backend, num_runs=2)


@pytest.mark.parametrize(("name", "order"), in_turns(product(["flux", "wan"], [1, 2]), weeks=4))
def test_equals_the_cache_of_diffusers(name, order):
    """The same features at the same full steps give what diffusers' own ``TaylorSeerCacheConfig`` gives, up to rounding.

    Its schedule differs (after ``disable_cache_before_step`` steps in full, each step ``s`` with ``s - disable_cache_before_step
    - 1`` divisible by ``cache_interval``), so the backend gets the list. It forms the first derivative at the second full step
    wherever that is; the official code, and so the backend, not before step ``warmup - 1``. With two full steps at the start
    both are step 1, and from there on the recursions are the same. Its factors are bfloat16 unless it is told otherwise.
    """
    case = CASES[name]
    settings = {"cache_interval": 3, "disable_cache_before_step": 2}
    full_steps = [0, 1, 3, 6, 9]
    pipe = case.build()
    plain = generate(case, pipe, num_steps=11)
    features = case.feature_modules(pipe.transformer)
    names = [re.escape(path) for path, module in pipe.transformer.named_modules() if module in features]
    config = TaylorSeerCacheConfig(**settings, max_order=order, taylor_factors_dtype=torch.float32, cache_identifiers=names)
    pipe.transformer.enable_cache(config)
    expected = generate(case, pipe, num_steps=11)
    pipe.transformer.disable_cache()
    compile_transformer(pipe, order=order, full_steps=full_steps)
    assert_close(generate(case, pipe, num_steps=11), expected)
    assert not torch.allclose(expected, plain, rtol=1e-2)
