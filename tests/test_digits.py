"""The trained model: it draws what it is asked for, and forecasting it follows the reference through whole generations."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from taylorseer_fx import taylorseer_backend
from taylorseer_fx.demo.quality import psnr
from taylorseer_fx.digits import NUM_CLASSES, WEIGHTS_PATH, load_digits_model, sample_digits
from taylorseer_fx.digits.judge import Judge
from taylorseer_fx.digits.sampling import build_scheduler
from tests.reference import HookReference
from tests.turns import in_turns

LABELS = torch.arange(NUM_CLASSES)
FEW = LABELS[:4]


class StepCounter:
    """Gives the reference, which is told the step, the face of a denoiser."""

    def __init__(self, reference: HookReference) -> None:
        self.reference, self.step = reference, -1

    def __call__(self, hidden_states: Tensor, **inputs: Any) -> tuple[Tensor]:
        self.step += 1
        return (self.reference(self.step, {"hidden_states": hidden_states, **inputs}),)


def feature_modules(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for block in model.transformer_blocks for module in (block.attn1, block.ff)]


@cache
def in_full() -> Tensor:
    """Two pictures of each class, every step executed."""
    return sample_digits(load_digits_model(), LABELS.repeat(2))


def test_weights_are_small_enough_to_ship():
    assert WEIGHTS_PATH.stat().st_size < 8 * 2**20


@pytest.mark.turn(1, 2)
def test_samples_show_the_class_asked_for():
    """At least 95 % of 20 pictures are named as asked for by a classifier fitted on the real digits."""
    assert Judge().accuracy(in_full(), LABELS.repeat(2)) >= 0.95


def test_the_judge_can_tell_digits_apart():
    """On digits it was not fitted on; and on pictures with the wrong label it says no."""
    judge = Judge()
    assert judge.held_out_accuracy() > 0.97
    assert judge.accuracy(in_full(), (LABELS.repeat(2) + 1) % NUM_CLASSES) <= 0.1


@pytest.mark.parametrize(("order", "interval", "warmup"), in_turns([(1, 5, 3), (4, 5, 6)], weeks=2))
def test_whole_generation_follows_the_reference(order: int, interval: int, warmup: int):
    """50 DDIM steps with guidance, each from its own latents: pictures within 1e-4 relative of the reference's, and at the demo's
    settings near the full run's (35.8 dB in a first experiment).
    """
    model = load_digits_model()
    expected = sample_digits(StepCounter(HookReference(model, feature_modules(model), order, interval, warmup)), FEW)
    compiled = torch.compile(model, backend=taylorseer_backend(order, interval, warmup, compiler="eager"))
    actual = sample_digits(compiled, FEW)
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert order > 1 or psnr(actual, in_full()[:4]) > 30


@pytest.mark.turn(0, 4)
def test_float8_buffers_cost_no_quality():
    """25 steps: the pictures are off those with buffers in float32 by a thousandth, and no further from the full run's."""
    model = load_digits_model()
    full = sample_digits(model, FEW, num_steps=25)
    samples = []
    for buffer_dtype in (None, torch.float8_e5m2):
        backend = taylorseer_backend(order=1, buffer_dtype=buffer_dtype, compiler="eager")
        samples.append(sample_digits(torch.compile(model, backend=backend), FEW, num_steps=25))
        torch._dynamo.reset()
    wide, narrow = samples
    assert 3e-4 <= (narrow - wide).norm() / wide.norm() <= 2.2e-3  # measured: 1.1e-3
    assert psnr(narrow, full) >= psnr(wide, full) - 0.3


def guided_with_a_pause(denoiser: Any, pause: range) -> Tensor:
    """50 steps with two calls a step, but for those in the ``pause``, which are without guidance."""
    scheduler, latents = build_scheduler(), torch.randn(len(FEW), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(50)
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            halves = [FEW, torch.full_like(FEW, NUM_CLASSES)][: 1 if step in pause else 2]
            noise = [denoiser(latents, timestep=t.expand(len(FEW)), class_labels=half, return_dict=False)[0] for half in halves]
            guided = noise[0] if step in pause else noise[1] + 3 * (noise[0] - noise[1])
            latents = scheduler.step(guided, t, latents, return_dict=False)[0]
    return latents


@pytest.mark.turn(0, 2)
@pytest.mark.parametrize("pause", [range(20, 24), range(15, 26)], ids=str)
def test_guidance_that_pauses_costs_no_quality(pause):
    """Forecast from where the other half is: 32 dB, with and without a pause. Counting calls of its own, it was 20 to 22 dB."""
    model = load_digits_model()
    compiled = torch.compile(model, backend=taylorseer_backend(order=2, interval=7, compiler="eager"))
    assert psnr(guided_with_a_pause(compiled, pause), guided_with_a_pause(model, pause)) > 29


def test_two_generations_are_the_same_to_the_bit():
    compiled = torch.compile(load_digits_model(), backend=taylorseer_backend(order=2, compiler="eager"))
    first = sample_digits(compiled, FEW, num_steps=25)
    sample_digits(compiled, FEW, num_steps=13, seed=1)
    assert torch.equal(sample_digits(compiled, FEW, num_steps=25), first)
