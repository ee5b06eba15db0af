"""The trained models as diffusers pipelines, so that every method meets them as it meets any other."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from taylorseer_fx.shipped import DIGITS, FASHION, NUM_CLASSES, Shipped


class _ShippedPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A model's ``denoising_steps`` behind a pipeline's call."""

    shipped: Shipped

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.register_modules(transformer=transformer)

    @torch.no_grad()
    def __call__(
        self, class_labels: Sequence[int], num_inference_steps: int = 50, guidance_scale: float = 2.0, seed: int = 0
    ) -> tuple[Tensor]:
        """Pictures float32 ``[n, 1, side, side]``, in [-1, 1] but not clipped."""
        steps = self.shipped.denoising_steps(
            self.transformer,
            torch.tensor(class_labels),
            num_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
        )
        with self.progress_bar(total=num_inference_steps) as bar:
            for latents in steps:
                samples = latents
                bar.update()
        return (samples,)


class DiTDigitsPipeline(_ShippedPipeline):
    """The pipeline of the digits model."""

    shipped = DIGITS


class FluxFashionPipeline(_ShippedPipeline):
    """The pipeline of the fashion model."""

    shipped = FASHION


def shipped_pipeline(model: Shipped) -> DiffusionPipeline:
    """With the trained weights, frozen."""
    cls = DiTDigitsPipeline if model is DIGITS else FluxFashionPipeline
    pipe = cls(model.load().requires_grad_(False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shipped_kwargs(num_images: int, num_steps: int, seed: int) -> dict[str, Any]:
    """The classes in turn."""
    return {"class_labels": [i % NUM_CLASSES for i in range(num_images)], "num_inference_steps": num_steps, "seed": seed}
