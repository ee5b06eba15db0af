"""Class-conditional DDIM sampling with classifier-free guidance, the way ``DiTPipeline`` does it (one batch, two halves)."""

from collections.abc import Callable, Iterable

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


@torch.no_grad()
def sample_digits(
    denoiser: Denoiser,
    labels: Tensor,
    *,
    num_steps: int = 50,
    guidance_scale: float = 2.0,
    seed: int = 0,
    progress: Callable[[Iterable[Tensor]], Iterable[Tensor]] | None = None,
) -> Tensor:
    """Denoise one picture a label, all from the noise of ``seed``.

    Args:
        denoiser: a ``DiTTransformer2DModel``, compiled or not.
        labels: int64 ``[n]``, classes 0 to 9.
        num_steps: DDIM steps.
        guidance_scale: classifier-free guidance weight; 1 is plain conditional sampling.
        seed: of the starting noise.
        progress: wraps the timesteps, e.g. ``tqdm``.

    Returns:
        float32 ``[n, 1, 8, 8]``, ink 1, paper -1, not clipped.
    """
    scheduler = build_scheduler()
    scheduler.set_timesteps(num_steps)
    latents = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    class_labels = torch.cat([labels, torch.full_like(labels, NULL_CLASS)])
    timesteps: Iterable[Tensor] = scheduler.timesteps
    for t in progress(timesteps) if progress else timesteps:
        both = torch.cat([latents, latents])
        noise = denoiser(both, timestep=t.expand(len(both)), class_labels=class_labels, return_dict=False)[0]
        cond, uncond = noise.chunk(2)
        guided = uncond + guidance_scale * (cond - uncond)
        latents = scheduler.step(guided, t, latents, return_dict=False)[0]
    return latents
