"""Class-conditional Euler sampling of a flow with true classifier-free guidance (one batch, two halves)."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from taylorseer_fx.fashion.model import IMAGE_SIZE, NULL_CLASS, class_inputs, pack, unpack

Denoiser = Callable[..., tuple[Tensor, ...]]


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Straight paths from noise (sigma 1) to pictures (sigma 0); sigmas are not shifted, which large pictures need."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def sample_fashion(
    denoiser: Denoiser, labels: Tensor, *, num_steps: int = 28, guidance_scale: float = 2.0, seed: int = 0
) -> Tensor:
    """Denoise one picture a label, all from the noise of ``seed``.

    Args:
        denoiser: a ``FluxTransformer2DModel``, compiled or not.
        labels: int64 ``[n]``, classes 0 to 9.
        num_steps: Euler steps.
        guidance_scale: classifier-free guidance weight; 1 is plain conditional sampling, for which the denoiser is not asked
            about pictures of no class at all.
        seed: of the starting noise.

    Returns:
        float32 ``[n, 1, 28, 28]``, cloth 1, background -1, not clipped.
    """
    *_, samples = denoising_steps(denoiser, labels, num_steps=num_steps, guidance_scale=guidance_scale, seed=seed)
    return samples


def denoising_steps(
    denoiser: Denoiser,
    labels: Tensor,
    *,
    num_steps: int = 28,
    guidance_scale: float = 2.0,
    seed: int = 0,
    noise: Tensor | None = None,
) -> Iterator[Tensor]:
    """Sample as ``sample_fashion`` does, a step at a time: yields the noisy pictures after each; from ``noise`` if given."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps))  # as FluxPipeline does
    if noise is None:
        noise = torch.randn(len(labels), 1, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))
    tokens = pack(noise)
    has_guidance = guidance_scale != 1
    inputs = class_inputs(torch.cat([labels, torch.full_like(labels, NULL_CLASS)]) if has_guidance else labels)
    for t in scheduler.timesteps:
        model_input = torch.cat([tokens, tokens]) if has_guidance else tokens
        with torch.no_grad():
            velocity = denoiser(model_input, timestep=t.expand(len(model_input)) / 1000, return_dict=False, **inputs)[0]
        if has_guidance:
            cond, uncond = velocity.chunk(2)
            velocity = uncond + guidance_scale * (cond - uncond)
        tokens = scheduler.step(velocity, t, tokens, return_dict=False)[0]
        yield unpack(tokens)
