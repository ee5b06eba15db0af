"""``backend.attach`` of modular pipelines: real blocks of diffusers, a loop and a guider, on tiny random models."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.modular_pipelines import ModularPipeline, SequentialPipelineBlocks
from diffusers.modular_pipelines.wan.before_denoise import WanPrepareLatentsStep, WanSetTimestepsStep, WanTextInputStep
from diffusers.modular_pipelines.wan.denoise import WanDenoiseStep
from torch import Tensor, nn

from taylorseer_fx import TaylorSeerBackend, taylorseer_backend
from tests.zoo import noise, randomize

NUM_STEPS = 10
SCHEDULE = {"order": 1, "interval": 3, "warmup": 2, "compiler": "eager"}
FULL, FORECAST = 4, 6  # of 10 steps: 0, 1, 4, 7


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def transformer(num_layers: int = 1) -> nn.Module:
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    return randomize(model)


def pipeline(guider: BaseGuidance, model: nn.Module | None = None, **settings: Any) -> tuple[TaylorSeerBackend, ModularPipeline]:
    """The blocks of Wan between the encoders, whose prompts are given, and the decoder."""
    blocks = {
        "text": WanTextInputStep(),
        "timesteps": WanSetTimestepsStep(),
        "latents": WanPrepareLatentsStep(),
        "denoise": WanDenoiseStep(),
    }
    pipe = SequentialPipelineBlocks.from_blocks_dict(blocks).init_pipeline()
    backend = taylorseer_backend(**SCHEDULE | settings)
    compiled = torch.compile(model if model is not None else transformer(), backend=backend)
    pipe.update_components(transformer=compiled, scheduler=FlowMatchEulerDiscreteScheduler(), guider=guider)
    pipe.set_progress_bar_config(disable=True)
    return backend, pipe


def run(pipe: ModularPipeline, seed: int = 0) -> Tensor:
    prompts = {f"{name}prompt_embeds": noise((1, 6, 16), i + seed, torch.float32) for i, name in enumerate(("", "negative_"))}
    latents = noise((1, 16, 1, 4, 4), 5 + seed, torch.float32)
    sizes = {"height": 32, "width": 32, "num_frames": 1}
    output: Tensor = pipe(**prompts, **sizes, latents=latents, num_inference_steps=NUM_STEPS, output="latents")
    return output


def num_calls(backend: TaylorSeerBackend) -> tuple[int, int]:
    return backend.stats().full_calls, backend.stats().forecast_calls


def test_guidance():
    """Each identifier of the guider is a stream; a run is a generation, and its buffers are freed."""
    backend, pipe = pipeline(ClassifierFreeGuidance(guidance_scale=3.0))
    backend.attach(pipe)
    first = run(pipe)
    assert num_calls(backend) == (2 * FULL, 2 * FORECAST)
    assert backend.stats().buffer_bytes == 0
    assert torch.equal(run(pipe), first)
    assert num_calls(backend) == (4 * FULL, 4 * FORECAST)


@pytest.mark.parametrize(
    ("settings", "num_guided"),
    [({"start": 0.1}, 9), ({"start": 0.3, "stop": 0.7}, 4), ({"stop": 0.5}, 5)],
    ids=["from the second step on", "in the middle", "at first"],
)
def test_the_same_with_and_without_names(settings, num_guided):
    """The guider's names and the conditioning tell the same streams, wherever guidance begins and ends."""
    attached, apart = (pipeline(ClassifierFreeGuidance(guidance_scale=3.0, **settings)) for _ in range(2))
    attached[0].attach(attached[1])
    assert torch.equal(run(attached[1]), run(apart[1]))
    assert num_calls(attached[0]) == num_calls(apart[0])
    assert sum(num_calls(attached[0])) == NUM_STEPS + num_guided


@pytest.mark.parametrize("at_call", [1, 2, 5])
def test_a_run_broken_off(at_call):
    """Between two calls of a step or within one: no stream is left open, and the next run is clean."""
    backend, pipe = pipeline(ClassifierFreeGuidance(guidance_scale=3.0))
    backend.attach(pipe)
    clean = run(pipe)
    calls = []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) == at_call:
            raise KeyboardInterrupt

    handle = pipe.transformer._orig_mod.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(pipe, seed=3)
    handle.remove()
    assert backend._runtime.scopes.get() is None
    assert backend.stats().buffer_bytes == 0
    assert torch.equal(run(pipe), clean)


def test_inside_a_named_stream():
    backend, pipe = pipeline(ClassifierFreeGuidance(guidance_scale=3.0))
    backend.attach(pipe)
    clean = run(pipe)
    with backend.stream("request"):
        assert torch.equal(run(pipe), clean)


def test_attached_twice_and_detached():
    backend, pipe = pipeline(ClassifierFreeGuidance(guidance_scale=3.0))
    loop = pipe._blocks.sub_blocks["denoise"]
    before = [set(vars(owner)) for owner in (pipe, loop, pipe.guider)]
    backend.attach(pipe)
    backend.attach(pipe)
    first = run(pipe)
    backend.detach()
    assert [set(vars(owner)) - {"_progress_bar_config"} for owner in (pipe, loop, pipe.guider)] == [
        names - {"_progress_bar_config"} for names in before
    ]
    assert torch.equal(run(pipe), first)


def test_another_guider_later():
    """It is not known by name; its calls are told apart by their conditioning."""
    backend, pipe = pipeline(ClassifierFreeGuidance(guidance_scale=3.0))
    backend.attach(pipe)
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=2.0))
    run(pipe)
    assert num_calls(backend) == (2 * FULL, 2 * FORECAST)
