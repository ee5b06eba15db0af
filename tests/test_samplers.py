"""The samplers of diffusers: repeated timesteps, two stages a step, noise added on the way, late starts. Each call is a step."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from taylorseer_fx import taylorseer_backend
from tests.reference import HookReference
from tests.test_attach import TinyPipeline
from tests.turns import in_turns
from tests.zoo import smooth, tiny

NUM_STEPS = 12


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


SAMPLERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "KDPM2DiscreteScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "UniPCMultistepScheduler": {},
    "LMSDiscreteScheduler": {},
    "PNDMScheduler": {"skip_prk_steps": True},
    "FlowMatchEulerDiscreteScheduler": {},
    "FlowMatchHeunDiscreteScheduler": {},
}


class SampledPipeline(TinyPipeline):
    """A real sampling loop, with serial guidance if asked for: latents go through the model and the scheduler."""

    def __call__(self, seed: int = 0, guidance: bool = False, start: int = 0) -> Tensor:
        scheduler, generator = self.scheduler, torch.Generator().manual_seed(seed)
        scheduler.set_timesteps(NUM_STEPS)
        latents = smooth((2, 6, 32), 0, seed, torch.float32) * getattr(scheduler, "init_noise_sigma", 1.0)
        first = start * scheduler.order
        timesteps = scheduler.timesteps[first:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        takes_generator = "generator" in scheduler.step.__code__.co_varnames
        with self.progress_bar(total=len(timesteps)):
            for timestep in timesteps:
                inputs = scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else latents
                noise = self.predict(inputs, timestep, guidance)
                latents = scheduler.step(noise, timestep, latents, **{"generator": generator} if takes_generator else {})[0]
        self.maybe_free_model_hooks()
        return latents

    def predict(self, latents: Tensor, timestep: Tensor, guidance: bool) -> Tensor:
        # The tiny random model is not a denoiser: kept small, its output lets every sampler stay finite.
        time = timestep.float().expand(len(latents))
        conditional = 0.1 * self.transformer(x=latents, timestep=time, prompt=torch.ones(1, 1))
        if not guidance:
            return conditional
        return conditional + (conditional - 0.1 * self.transformer(x=latents, timestep=time, prompt=torch.zeros(1, 1)))


class ReferenceModel:
    """The hook reference in the model's place: its calls, dealt out to the streams in turn, are the steps."""

    def __init__(self, num_streams: int) -> None:
        model = tiny()
        self.reference = HookReference(model, [model.attention, model.mlp], order=2, interval=3, warmup=2)
        self.num_streams, self.num_calls = num_streams, 0

    def __call__(self, **inputs: Any) -> Tensor:
        step, stream = divmod(self.num_calls, self.num_streams)
        self.num_calls += 1
        return self.reference(step, inputs, stream=stream)


def sampled(name: str, model: Any) -> SampledPipeline:
    pipe = SampledPipeline(tiny(), getattr(diffusers, name)(**SAMPLERS[name]))
    vars(pipe)["transformer"] = model  # past diffusers' check that it be a module
    return pipe


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # diffusers' KDPM2 schedulers hand tensors to NumPy
@pytest.mark.parametrize(("name", "attached"), in_turns(product(SAMPLERS, [True, False]), weeks=4))
def test_sampler(name, attached):
    """Every call of a generation is the next step of its stream; attached or not, guided or not, started late, and again."""
    backend = taylorseer_backend(order=2, interval=3, warmup=2, compiler="eager")
    pipe = sampled(name, torch.compile(tiny(), backend=backend, fullgraph=True))
    if attached:
        backend.attach(pipe)
    for settings in ({}, {"guidance": True}, {"start": 4}, {"seed": 3}, {"guidance": True, "start": 3}, {}):
        calls = sum((backend.stats().full_calls, backend.stats().forecast_calls))
        outputs = pipe(**settings)
        reference = ReferenceModel(2 if settings.get("guidance") else 1)
        wanted = sampled(name, reference)(**settings)
        assert sum((backend.stats().full_calls, backend.stats().forecast_calls)) - calls == reference.num_calls
        torch.testing.assert_close(outputs, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert backend.stats().compiles == 2
