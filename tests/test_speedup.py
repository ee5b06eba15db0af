"""``speedup=``: the user says how much, the run says how long it is, and the backend places the full steps."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from taylorseer_fx import ConfigError, TaylorSeerBackend, plan, taylorseer_backend
from taylorseer_fx.runtime.placement import place
from tests.pipelines.image import CASES
from tests.test_attach import TinyPipeline, cached, equal
from tests.zoo import tiny, tiny_inputs

EAGER: dict[str, Any] = {"compiler": "eager"}


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def attached(scheduler: Any = None, **settings: Any) -> tuple[TaylorSeerBackend, TinyPipeline]:
    backend = taylorseer_backend(**EAGER | settings)
    compiled = torch.compile(cached(), backend=backend, fullgraph=True)
    pipe = TinyPipeline(compiled, scheduler or FlowMatchEulerDiscreteScheduler())
    backend.attach(pipe)
    return backend, pipe


def shown(backend: TaylorSeerBackend) -> list[int]:
    """The full steps of the last run."""
    return [i for i, kind in enumerate(backend.explain().schedule) if kind == "F"]


class TestLength:
    def test_told_by_the_pipeline(self):
        """Other numbers of steps have lists of their own, and need no other graph."""
        backend, pipe = attached(speedup=4)
        for num_steps, num_full in ((20, 5), (50, 13), (7, 2), (20, 5)):
            before = backend.stats()
            pipe(num_steps=num_steps)
            after = backend.stats()
            assert after.full_calls - before.full_calls == num_full
            assert after.forecast_calls - before.forecast_calls == num_steps - num_full
            assert shown(backend) == list(place(num_steps, num_full))
        assert backend.stats().graphs == 1

    def test_the_pipeline_goes_first(self):
        backend, pipe = attached(speedup=4, num_steps=50)
        pipe(num_steps=20)
        assert backend.stats().full_calls == 5

    def test_of_a_scheduler_with_two_calls_a_step(self):
        """Heun's: a step of ten, but the last, calls the model twice."""
        backend, pipe = attached(FlowMatchHeunDiscreteScheduler(), speedup=4)
        pipe(num_steps=10)
        stats = backend.stats()
        assert (stats.full_calls, stats.forecast_calls) == (5, 14)

    def test_of_a_late_start(self):
        """Image to image at strength one half: twenty steps, of which the pipeline makes the last ten."""
        case = next(case for case in CASES if case.name == "flux-img2img")
        pipe = case.build()
        backend = taylorseer_backend(speedup=5, **EAGER)
        pipe.transformer.compile(backend=backend)
        backend.attach(pipe)
        pipe(**case.kwargs(10, 0))
        stats = backend.stats()
        assert (stats.full_calls, stats.forecast_calls) == (2, 8)

    def test_told_by_the_setting(self):
        backend = taylorseer_backend(speedup=5, num_steps=10, **EAGER)
        compiled = torch.compile(tiny(), backend=backend, fullgraph=True)
        for generation in range(2):
            for step in range(10):
                compiled(**tiny_inputs(step, seed=generation))
        stats = backend.stats()
        assert (stats.full_calls, stats.forecast_calls, stats.graphs) == (4, 16, 1)

    def test_told_by_nobody(self):
        """An error, and the next run that tells is as if there had been none."""
        pipe = attached(speedup=4)[1]
        with pytest.raises(ConfigError, match="num_steps must be an int of at least 1 when speedup is given, got None"):
            pipe.transformer(**tiny_inputs(0))
        outputs = pipe(num_steps=20)
        other = attached(speedup=4)[1]
        assert equal(outputs, other(num_steps=20))

    def test_a_stream_that_begins_late(self):
        """Guidance in the last five of ten steps has full steps for five."""
        backend, pipe = attached(speedup=2.5)
        pipe.scheduler.set_timesteps(10)
        with pipe.progress_bar(total=10):
            for i, timestep in enumerate(pipe.scheduler.timesteps):
                for name in ("cond", "uncond")[: 1 if i < 5 else 2]:
                    with pipe.transformer.cache_context(name):
                        pipe.transformer(**tiny_inputs(i, num_steps=10) | {"timestep": timestep.expand(2)})
                pipe.scheduler.step(torch.zeros(1), timestep, torch.zeros(1))
        stats = backend.stats()
        assert (stats.full_calls, stats.forecast_calls) == (4 + 2, 6 + 3)


class TestResults:
    def test_as_with_the_same_list(self):
        _, placed = attached(speedup=4)
        _, listed = attached(full_steps=place(20, 5))
        assert equal(placed(num_steps=20), listed(num_steps=20))

    def test_every_run_is_alike(self):
        """Bit for bit, also after one of another length."""
        _, pipe = attached(speedup=4)
        first = pipe(num_steps=20)
        pipe(num_steps=9, seed=1)
        assert equal(pipe(num_steps=20), first)


class TestSettings:
    @pytest.mark.parametrize("value", [0.5, 0, -2, True, "5", float("nan"), float("inf")])
    def test_out_of_range(self, value):
        with pytest.raises(ConfigError, match="speedup must be a number of at least 1"):
            taylorseer_backend(speedup=value)

    @pytest.mark.parametrize("other", [{"interval": 4}, {"warmup": 2}, {"full_steps": [0, 3]}])
    def test_one_schedule_at_a_time(self, other):
        with pytest.raises(ConfigError, match=r"left out when (speedup|full_steps) is given"):
            taylorseer_backend(speedup=5, **other)

    def test_num_steps_alone(self):
        with pytest.raises(ConfigError, match="left out unless speedup is given, got 50"):
            taylorseer_backend(num_steps=50)

    def test_by_name(self):
        compiled = torch.compile(tiny(), backend="taylorseer", options={"speedup": 2, "num_steps": 4, "compiler": "eager"})
        for step in range(4):
            compiled(**tiny_inputs(step))


class TestShown:
    def test_before_any_run(self):
        """For fifty steps, or as many as the setting says."""
        backend = taylorseer_backend(speedup=5, num_steps=20, **EAGER)
        torch.compile(tiny(), backend=backend, fullgraph=True)(**tiny_inputs(0))
        assert f"schedule:      {backend.explain().schedule}  (4 of 20 steps full, ceiling 5.00x)" in str(backend.explain())

    def test_in_a_plan(self):
        planned = plan(tiny(), tiny_inputs(0), num_steps=28, speedup=3.5)
        assert planned.full_steps == place(28, 8)
        assert planned.notes == ()
