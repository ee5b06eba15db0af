"""``backend.attach``: what a pipeline or a model says replaces what the timesteps alone would tell."""

import gc
import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

from taylorseer_fx import ConfigError, TaylorSeerBackend, TaylorSeerWarning, taylorseer_backend
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.runtime import calls
from tests.runtime.graph_stand_in import StandIn
from tests.zoo import Tiny, randomize, tiny, tiny_inputs

NUM_STEPS = 10
SCHEDULE = {"order": 1, "interval": 3, "warmup": 2, "compiler": "eager"}
FULL_STEPS = [0, 1, 4, 7]
FULL, FORECAST = 4, 6  # of 10 steps


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class CachedTiny(Tiny, CacheMixin):
    """With the cache context that most diffusers models have."""


class TinyPipeline(DiffusionPipeline):
    """The loop that diffusers' pipelines have: progress bar, contexts, scheduler, release at the end."""

    def __init__(self, transformer: nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.set_progress_bar_config(disable=True)

    @property
    def stepped(self) -> Any:
        return self.scheduler

    def __call__(
        self,
        num_steps: int = NUM_STEPS,
        seed: int = 0,
        guidance: bool = False,
        stop_at: int | None = None,
        guided: Collection[int] = range(1000),
        eager: Collection[int] = (),
    ) -> list[Tensor]:
        """The outputs of all calls. ``guided``: the steps with guidance; ``eager``: those that run as with no compiler."""
        outputs = []
        self.scheduler.set_timesteps(num_steps)
        with self.progress_bar(total=num_steps) as bar:
            for i, timestep in enumerate(self.scheduler.timesteps):
                if i == stop_at:
                    raise KeyboardInterrupt
                inputs = tiny_inputs(i, seed=seed, num_steps=num_steps) | {"timestep": timestep.expand(2).float()}
                calls = ["cond", "uncond"] if guidance and i in guided else ["cond"]
                for name in calls:
                    shifted = inputs | {"prompt": torch.tensor([[1.0 if name == "cond" else 0.5]])}
                    with self._context(name):
                        model = self.transformer if i not in eager else self.transformer._orig_mod
                        outputs.append(model(**shifted).clone())
                self.stepped.step(torch.zeros(1), timestep, torch.zeros(1))
                bar.update()
        self.maybe_free_model_hooks()
        return outputs

    def _context(self, name: str) -> Any:
        return self.transformer.cache_context(name) if hasattr(self.transformer, "cache_context") else nullcontext()


def cached() -> nn.Module:
    return randomize(CachedTiny())


def pipeline(model: nn.Module | None = None, **settings: Any) -> tuple[TaylorSeerBackend, TinyPipeline]:
    schedule = {"order": 1, "compiler": "eager"} if "full_steps" in settings else SCHEDULE
    backend = taylorseer_backend(**schedule | settings)
    compiled = torch.compile(model if model is not None else cached(), backend=backend, fullgraph=True)
    return backend, TinyPipeline(compiled, FlowMatchEulerDiscreteScheduler())


def attached(model: nn.Module | None = None, **settings: Any) -> tuple[TaylorSeerBackend, TinyPipeline]:
    backend, pipe = pipeline(model, **settings)
    backend.attach(pipe)
    return backend, pipe


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def num_calls(backend: TaylorSeerBackend) -> tuple[int, int]:
    return backend.stats().full_calls, backend.stats().forecast_calls


class TestGenerations:
    def test_each_run_is_one(self):
        backend, pipe = attached()
        first = pipe()
        assert num_calls(backend) == (FULL, FORECAST)
        assert equal(pipe(), first)
        assert num_calls(backend) == (2 * FULL, 2 * FORECAST)

    def test_the_same_as_by_timesteps(self):
        """Where timesteps tell all there is to know, attaching changes nothing."""
        assert equal(attached()[1](), pipeline()[1]())

    def test_after_a_lone_call_at_the_first_timestep(self):
        """What timesteps alone take for guidance."""
        backend, pipe = attached()
        clean = pipe()
        pipe.transformer(**tiny_inputs(0, seed=4, prompt=1.0))
        assert equal(pipe(), clean)
        pipe(num_steps=1, seed=3)
        assert equal(pipe(), clean)
        assert backend.stats().streams <= 1

    @pytest.mark.parametrize("stop_at", [0, 1, 2, 6])
    def test_after_an_interrupted_run(self, stop_at):
        """The bar is closed by the exception, so the run is over, its buffers are freed, and the next one is clean."""
        backend, pipe = attached()
        clean = pipe()
        with pytest.raises(KeyboardInterrupt):
            pipe(seed=3, stop_at=stop_at)
        assert backend.stats().buffer_bytes == 0
        assert equal(pipe(), clean)

    def test_a_bar_collected_late(self):
        """A bar of an earlier run that is collected in mid-run ends that earlier run, not this one."""
        backend, pipe = attached()
        clean = pipe()
        late = pipe.progress_bar(total=1)
        late.close()
        step, kept = pipe.scheduler.step, [late]

        def step_and_collect(*args: Any, **kwargs: Any) -> Any:
            kept.clear()
            gc.collect()
            return step(*args, **kwargs)

        del late
        pipe.scheduler.step = step_and_collect
        assert equal(pipe(), clean)
        assert num_calls(backend) == (2 * FULL, 2 * FORECAST)

    @pytest.mark.parametrize("disable", [True, False])
    def test_a_bar_that_is_iterated(self, disable, capsys):
        """``for t in self.progress_bar(timesteps)``, shown or disabled: the run ends with the loop, also if broken off."""
        backend, pipe = attached()
        pipe.set_progress_bar_config(disable=disable)
        assert list(pipe.progress_bar([3, 2, 1])) == [3, 2, 1]
        assert backend._runtime.scopes.get() is None
        for _ in pipe.progress_bar([3, 2, 1]):
            assert backend._runtime.scopes.get().name == "pipeline 1"
            break
        gc.collect()
        assert backend._runtime.scopes.get() is None
        capsys.readouterr()

    def test_step_counts_may_change(self):
        backend, pipe = attached()
        clean = pipe()
        pipe(num_steps=23)
        assert equal(pipe(), clean)
        assert backend.stats().compiles == 2

    def test_buffers_are_freed_at_the_end(self):
        """With the pipeline's own hooks: they would only take memory from the decoder."""
        backend, pipe = attached()
        pipe()
        assert backend.stats().buffer_bytes == 0

    def test_a_run_inside_a_run(self):
        """A callback that runs the pipeline for a preview: the outer run goes on undisturbed."""
        backend, pipe = attached()
        clean = pipe()
        step = FlowMatchEulerDiscreteScheduler.step
        preview = TinyPipeline(pipe.transformer, FlowMatchEulerDiscreteScheduler())
        backend.attach(preview)

        def step_and_preview(*args: Any, **kwargs: Any) -> Any:
            preview(num_steps=4, seed=6)
            return step(pipe.scheduler, *args, **kwargs)

        pipe.scheduler.step = step_and_preview
        assert equal(pipe(), clean)


class TestStreams:
    def test_guidance_by_context(self):
        backend, pipe = attached()
        both = pipe(guidance=True)
        assert num_calls(backend) == (2 * FULL, 2 * FORECAST)
        assert equal(both[::2], pipe())

    def test_guidance_that_stops_midway(self):
        """The conditional stream is what it is without guidance, also after the unconditional one ended."""
        _, pipe = attached()
        outputs = pipe(guidance=True, guided=range(4))
        assert equal([*outputs[:8:2], *outputs[8:]], pipe())

    def test_guidance_without_contexts(self):
        """Two unnamed calls a step (the model lacks CacheMixin): told apart by what they are conditioned on."""
        backend, pipe = attached(tiny())
        assert equal(pipe(guidance=True)[::2], pipe())
        assert num_calls(backend) == (3 * FULL, 3 * FORECAST)

    def test_inside_a_named_stream(self):
        """Names join, so two requests that take turns on one model are kept apart."""
        backend, pipe = pipeline()
        other = TinyPipeline(pipe.transformer, FlowMatchEulerDiscreteScheduler())
        backend.attach(pipe.transformer)
        alone = [pipe(seed=1, guidance=True), other(seed=2, guidance=True)]
        backend.reset()
        for name, one, wanted in (("a", pipe, alone[0]), ("b", other, alone[1])):
            with backend.stream(name):
                assert equal(one(seed=1 if name == "a" else 2, guidance=True), wanted)

    def test_step_index_of_the_context(self):
        """A pipeline that says the step in its context is taken at its word, whatever the timestep."""
        model = cached()
        backend = taylorseer_backend(**SCHEDULE)
        compiled = torch.compile(model, backend=backend)
        backend.attach(compiled)
        for step in range(NUM_STEPS):
            with compiled.cache_context("cond", step_index=step):
                compiled(**tiny_inputs(0))
        assert num_calls(backend) == (FULL, FORECAST)


class TestTwoPipelines:
    def test_one_model_in_two_pipelines(self):
        """They take turns, at other step counts; neither sees the other."""
        backend, one = attached()
        other = TinyPipeline(one.transformer, FlowMatchEulerDiscreteScheduler())
        backend.attach(other)
        clean, clean_other = one(), other(num_steps=7, seed=2)
        assert equal(one(), clean)
        assert equal(other(num_steps=7, seed=2), clean_other)

    def test_two_models_of_one_pipeline_with_a_backend_each(self):
        """As Wan 2.2 has for high and low noise: each backend is attached to the pipeline."""
        backends, pipes = zip(*(attached() for _ in range(2)), strict=True)
        pipe = pipes[0]
        clean = pipe()
        backends[1].attach(pipe)
        pipe.transformer, first = pipes[1].transformer, pipe.transformer
        assert equal(pipe(), clean)
        pipe.transformer = first
        assert equal(pipe(), clean)

    @pytest.mark.parametrize("how", ["closed", "iterated"])
    def test_a_run_ends_for_each_backend(self, how):
        """Closing the bar of two backends ended the run of the last one only; buffers of the first stayed, and its scope."""
        backend, pipe = attached()
        other = attached(pipe.transformer._orig_mod)[0]
        other.attach(pipe)
        for _ in range(2):
            if how == "closed":
                pipe()
            else:
                list(pipe.progress_bar([3, 2, 1]))
            assert [each._runtime.scopes.get() for each in (backend, other)] == [None, None]
            assert backend.stats().buffer_bytes == 0


class TestTheStepIndex:
    """A GPU would have to be waited for to read a timestep; the scheduler's index is on the host."""

    def count_reads(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        reads: list[int] = []
        original = calls.read_time

        def counted(tensors: Any) -> Any:
            reads.append(1)
            return original(tensors)

        monkeypatch.setattr(calls, "read_time", counted)
        return reads

    def test_read_instead_of_timesteps_once_trusted(self, monkeypatch):
        """The first run reads and compares; the following read no timestep, and are the same."""
        reads = self.count_reads(monkeypatch)
        _, pipe = attached()
        first = pipe(guidance=True)
        assert len(reads) == 2 * NUM_STEPS
        assert equal(pipe(guidance=True), first)
        assert len(reads) == 2 * NUM_STEPS

    def test_not_trusted_where_it_stands_still(self, monkeypatch):
        """A pipeline that steps copies of its scheduler, which are not counted: timesteps are read in every run."""
        reads = self.count_reads(monkeypatch)
        backend, pipe = attached()
        monkeypatch.setattr(TinyPipeline, "stepped", property(lambda pipe: deepcopy(pipe.scheduler)))
        pipe()
        pipe()
        assert len(reads) == 2 * NUM_STEPS
        assert num_calls(backend) == (2 * FULL, 2 * FORECAST)


class TestStepsNotSeen:
    """Steps without a call that reaches the backend count all the same: the scheduler's are counted."""

    @pytest.mark.parametrize("guidance", [False, True])
    @pytest.mark.parametrize("at", range(1, 9))
    def test_that_ran_eagerly(self, at, guidance):
        """As Dynamo does at its limit. The others are the same bit for bit as if it had been a forecast; if it was to be a full
        step, as if the next had been. So in the first run, where timesteps are the time, and in the second, where the count is.
        """
        wanted = sorted({*FULL_STEPS, at + 1} - {at}) if at in FULL_STEPS else FULL_STEPS
        (_, pipe), (_, clean) = attached(), attached(full_steps=wanted)
        expected = clean(num_steps=9, guidance=guidance)
        kept = [i for i in range(len(expected)) if i // (1 + guidance) != at]
        with pytest.warns(TaylorSeerWarning, match=f"came to step {at + 1} of") if at < 8 else nullcontext():
            runs = [pipe(num_steps=9, guidance=guidance, eager=[at]) for _ in range(2)]
        for found in runs:
            assert equal([found[i] for i in kept], [expected[i] for i in kept])

    @pytest.mark.parametrize("made", [lambda **settings: attached(**settings), lambda **settings: pipeline(tiny(), **settings)])
    @pytest.mark.parametrize("paused", [[3], [4], [2, 3, 4, 5], [1, 6, 7], [1, 3, 5, 7]], ids=str)
    def test_while_guidance_pauses(self, paused, made):
        """The paused half goes on where the other one is, and in full if a full step fell into the pause; nothing is said.
        So by the names of an attached pipeline's contexts, and by timesteps alone.
        """
        guided = [step for step in range(NUM_STEPS) if step not in paused]
        wanted = [now for last, now in pairwise([-1, *guided]) if any(last < full <= now for full in FULL_STEPS)]
        (_, pipe), (_, clean) = made(), made(full_steps=[*wanted, 99])
        found, expected = pipe(guidance=True, guided=guided), clean(guidance=True)
        unconditional = [at + i for i, at in enumerate(guided, 1)]
        assert equal([found[i] for i in unconditional], [expected[2 * at + 1] for at in guided])

    @pytest.mark.parametrize("scheduler", [DDIMScheduler, FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler])
    def test_schedulers_are_left_as_they_were(self, scheduler):
        """Once detached; until then ``step`` is counted, and has the arguments that it had."""
        backend, pipe = attached()
        first, second = pipe.scheduler, scheduler()
        for each in (first, second, second):
            pipe.scheduler = each
            signature = inspect.signature(type(each).step)
            with pipe.progress_bar(total=1), pipe.progress_bar(total=1):
                assert "step" in vars(each)
                assert list(inspect.signature(each.step).parameters) == list(signature.parameters)[1:]
                assert each.step.__code__ is type(each).step.__code__
        backend.detach()
        assert not {"step"} & (vars(first).keys() | vars(second).keys())

    def test_one_scheduler_of_several_pipelines_and_backends(self):
        """As ``from_pipe`` makes them: counted once for each, however often they take turns with it and with another one."""
        (backend, first), (_, second) = attached(), attached()
        backend.attach(second)
        shared = first.scheduler
        clean = first(guidance=True)
        for _ in range(5):
            for pipe in (first, second):
                for pipe.scheduler in (shared, FlowMatchEulerDiscreteScheduler()):
                    assert equal(pipe(guidance=True), clean)
        depth, step = 0, vars(shared)["step"]
        while "function" in vars(step):
            depth, step = depth + 1, step.original
        assert depth == 3

    def test_a_step_that_somebody_else_puts_in_between(self):
        """Over ours or in its place, or takes off: each step counts once."""
        _, pipe = attached()
        clean = pipe(guidance=True)
        for inner in (pipe.scheduler.step, partial(FlowMatchEulerDiscreteScheduler.step, pipe.scheduler)):
            pipe.scheduler.step = lambda *args, inner=inner: inner(*args)
            assert equal(pipe(guidance=True), clean)
        del pipe.scheduler.step
        assert equal(pipe(guidance=True), clean)

    def test_a_scheduler_without_an_index_gives_the_step(self):
        """To a model that is not given the time, such as a block that is compiled alone."""
        backend, pipe = attached(randomize(CachedTiny(timed=False)))
        pipe.scheduler = DDIMScheduler()
        pipe(guidance=True)
        assert num_calls(backend) == (2 * FULL, 2 * FORECAST)

    def test_a_scheduler_without_an_index(self, monkeypatch):
        """Counted as any other: no timestep is read from the second run on."""
        _, pipe = attached()
        pipe.scheduler = DDIMScheduler()
        first = pipe()
        monkeypatch.setattr(calls, "read_time", lambda _: 1 / 0)
        assert equal(pipe(), first)


class TestOrderAndUndoing:
    @pytest.mark.parametrize("target", ["pipeline", "model"])
    def test_before_compiling(self, target):
        """``attach`` comes before ``torch.compile``, and survives its wrapper."""
        backend = taylorseer_backend(**SCHEDULE)
        model = cached()
        pipe = TinyPipeline(model, FlowMatchEulerDiscreteScheduler())
        backend.attach(pipe if target == "pipeline" else model)
        pipe.transformer = torch.compile(model, backend=backend)
        both = pipe(guidance=True)
        assert num_calls(backend) == (2 * FULL, 2 * FORECAST)
        assert equal(both[::2], attached()[1]())

    def test_module_compile(self):
        backend = taylorseer_backend(**SCHEDULE)
        model = cached()
        model.compile(backend=backend, fullgraph=True)
        pipe = TinyPipeline(model, FlowMatchEulerDiscreteScheduler())
        backend.attach(pipe)
        assert equal(pipe(), attached()[1]())

    @pytest.mark.parametrize("make", [cached, tiny], ids=["CacheMixin", "without"])
    def test_detach(self, make):
        """Not an attribute is left, and state follows from the timesteps again."""
        backend, pipe = pipeline(make())
        clean = pipe()
        before = set(vars(pipe)), set(vars(pipe.transformer._orig_mod))
        backend.attach(pipe)
        backend.attach(pipe.transformer)
        backend.detach()
        assert (set(vars(pipe)), set(vars(pipe.transformer._orig_mod))) == before
        assert equal(pipe(), clean)

    def test_attaching_twice_is_attaching_once(self):
        backend, pipe = attached()
        backend.attach(pipe)
        assert equal(pipe(guidance=True), attached()[1](guidance=True))
        backend.detach()
        assert "progress_bar" not in vars(pipe)

    def test_two_backends_on_one_model(self):
        """Each undoes its own, in either order."""
        backend, pipe = attached()
        other = taylorseer_backend(**SCHEDULE)
        other.attach(pipe)
        backend.detach()
        clean = attached()[1]()
        assert equal(pipe(), clean)
        other.detach()

    def test_the_model_can_be_copied(self):
        """``deepcopy`` and ``state_dict`` of an attached model work as ever."""
        _, pipe = attached()
        model = pipe.transformer._orig_mod
        assert deepcopy(model).state_dict().keys() == model.state_dict().keys()

    def test_neither_pipeline_nor_model(self):
        with pytest.raises(ConfigError, match=r"pipe_or_model must be a diffusers pipeline or a torch\.nn\.Module, got 'int'"):
            taylorseer_backend().attach(3)


class TestModelAlone:
    """``attach(model)``: the contexts name the streams, and diffusers' own reset ends the generation."""

    @pytest.mark.parametrize("make", [cached, tiny], ids=["CacheMixin", "without"])
    def test_reset_by_the_pipeline(self, make):
        backend, pipe = pipeline(make())
        backend.attach(pipe.transformer)
        clean = pipe()
        assert backend.stats().buffer_bytes == 0
        pipe(num_steps=1, seed=3)
        assert equal(pipe(), clean)

    def test_only_its_own_streams(self):
        """The end of a pipeline's run leaves a request in a stream of its own alone."""
        backend, pipe = pipeline()
        backend.attach(pipe.transformer)
        compiled: Callable[..., Tensor] = pipe.transformer
        clean = [compiled(**tiny_inputs(step)).clone() for step in range(NUM_STEPS)]
        outputs = []
        for step in range(NUM_STEPS):
            with backend.stream("request"):
                outputs.append(compiled(**tiny_inputs(step)).clone())
            if step == 4:
                pipe(seed=5)
        assert equal(outputs, clean)


class TestCaptures:
    """Where steps are CUDA graphs (here a stand-in for them), the buffers of a run stay where they are for the next."""

    def captured(self, **settings: Any) -> tuple[TaylorSeerBackend, TinyPipeline]:
        backend = TaylorSeerBackend(BackendConfig(**SCHEDULE | settings), StandIn())
        pipe = TinyPipeline(torch.compile(cached(), backend=backend), FlowMatchEulerDiscreteScheduler())
        backend.attach(pipe)
        return backend, pipe

    @pytest.mark.parametrize("guidance", [False, True])
    def test_a_second_run_makes_none(self, guidance):
        backend, pipe = self.captured()
        first = pipe(guidance=guidance)
        before, allocated = backend.stats().captures, backend.stats().buffer_bytes
        assert before > 0
        for _ in range(3):
            assert equal(pipe(guidance=guidance), first)
        assert backend.stats().captures == before
        assert backend.stats().buffer_bytes == backend.stats().peak_buffer_bytes == allocated > 0

    def test_only_what_the_last_run_used(self):
        """After a run with guidance, one without frees the other half's buffers at its end."""
        backend, pipe = self.captured()
        pipe(guidance=True)
        both = backend.stats().buffer_bytes
        pipe()
        assert 2 * backend.stats().buffer_bytes == both
        backend.reset()
        assert backend.stats().buffer_bytes == 0

    def test_other_sizes(self, monkeypatch):
        """Buffers of the last run are gone before there are any of other sizes."""
        backend, pipe = self.captured()
        pipe()
        one = backend.stats().buffer_bytes
        monkeypatch.setitem(globals(), "tiny_inputs", partial(tiny_inputs, length=12))
        pipe()
        assert backend.stats().buffer_bytes == backend.stats().peak_buffer_bytes == 2 * one

    def test_after_an_error(self):
        """It may be for want of memory, so nothing is kept."""
        backend, pipe = self.captured()
        clean = pipe()
        with pytest.raises(KeyboardInterrupt):
            pipe(stop_at=6)
        assert backend.stats().buffer_bytes == 0
        assert equal(pipe(), clean)
