"""The digits model as a diffusers pipeline, so that every method meets it as it meets any other."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel
from torch import Tensor

from taylorseer_fx.digits import load_digits_model
from taylorseer_fx.digits.sampling import denoising_steps


class DiTDigitsPipeline(DiffusionPipeline):  # type: ignore[misc]
    """``denoising_steps`` behind a pipeline's call."""

    def __init__(self, transformer: DiTTransformer2DModel) -> None:
        super().__init__()
        self.register_modules(transformer=transformer)

    @torch.no_grad()
    def __call__(
        self, class_labels: Sequence[int], num_inference_steps: int = 50, guidance_scale: float = 2.0, seed: int = 0
    ) -> tuple[Tensor]:
        """Pictures float32 ``[n, 1, 8, 8]``, ink 1, paper -1, not clipped."""
        steps = denoising_steps(
            self.transformer,
            torch.tensor(class_labels),
            num_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
        )
        with self.progress_bar(steps, total=num_inference_steps) as bar:
            *_, samples = bar
        return (samples,)


def digits_pipeline() -> DiTDigitsPipeline:
    """With the trained weights, frozen."""
    pipe = DiTDigitsPipeline(load_digits_model().requires_grad_(False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def digits_kwargs(num_images: int, num_steps: int, seed: int) -> dict[str, Any]:
    """The classes in turn."""
    return {"class_labels": [i % 10 for i in range(num_images)], "num_inference_steps": num_steps, "seed": seed}
