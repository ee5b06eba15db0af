"""Class-conditional DDIM sampling with classifier-free guidance, the way ``DiTPipeline`` does it (one batch, two halves)."""

from collections.abc import Callable, Iterator

import torch
from diffusers import DDIMScheduler
from torch import Tensor

NUM_CLASSES = 10
NULL_CLASS = NUM_CLASSES  # the label embedding's extra row: "no class given"

Denoiser = Callable[..., tuple[Tensor, ...]]


def build_scheduler() -> DDIMScheduler:
    """Cosine schedule, noise prediction.

    ``clip_sample=False`` is not a detail: with diffusers' default, guidance drives the full run into saturated pictures, and
    every fidelity figure measured against that run is meaningless.
    """
    return DDIMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", clip_sample=False)


def sample_digits(
    denoiser: Denoiser, labels: Tensor, *, num_steps: int = 50, guidance_scale: float = 2.0, seed: int = 0
) -> Tensor:
    """Denoise one picture a label, all from the noise of ``seed``.

    Args:
        denoiser: a ``DiTTransformer2DModel``, compiled or not.
        labels: int64 ``[n]``, classes 0 to 9.
        num_steps: DDIM steps.
        guidance_scale: classifier-free guidance weight; 1 is plain conditional sampling, for which the denoiser is not asked
            about pictures of no class at all.
        seed: of the starting noise.

    Returns:
        float32 ``[n, 1, 8, 8]``, ink 1, paper -1, not clipped.
    """
    *_, samples = denoising_steps(denoiser, labels, num_steps=num_steps, guidance_scale=guidance_scale, seed=seed)
    return samples


def denoising_steps(
    denoiser: Denoiser,
    labels: Tensor,
    *,
    num_steps: int = 50,
    guidance_scale: float = 2.0,
    seed: int = 0,
    noise: Tensor | None = None,
) -> Iterator[Tensor]:
    """Sample as ``sample_digits`` does, a step at a time: yields the latents after each; from ``noise`` if given."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(num_steps)
    if noise is None:
        noise = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    latents = noise
    has_guidance = guidance_scale != 1
    class_labels = torch.cat([labels, torch.full_like(labels, NULL_CLASS)]) if has_guidance else labels
    for t in scheduler.timesteps:
        model_input = torch.cat([latents, latents]) if has_guidance else latents
        with torch.no_grad():
            noise = denoiser(model_input, timestep=t.expand(len(model_input)), class_labels=class_labels, return_dict=False)[0]
        if has_guidance:
            cond, uncond = noise.chunk(2)
            noise = uncond + guidance_scale * (cond - uncond)
        latents = scheduler.step(noise, t, latents, return_dict=False)[0]
        yield latents
