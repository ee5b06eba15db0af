"""FLUX.1-dev: of 50 denoising steps, 10 are executed, and 40 are forecast."""

from typing import Any

import torch
from diffusers import DiffusionPipeline

import taylorseer_fx

PROMPT = "a red fox in the snow"


def load() -> DiffusionPipeline:
    """Load the published weights onto the GPU."""
    return DiffusionPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16).to("cuda")


def main(pipe: Any = None, out: str = "flux.png", num_steps: int = 50, **call: Any) -> taylorseer_fx.Acceleration:
    """Generate and save a picture; ``call`` holds further arguments of the pipeline's call."""
    pipe = pipe if pipe is not None else load()
    handle = taylorseer_fx.accelerate(pipe, speedup=5.0)

    image = pipe(PROMPT, num_inference_steps=num_steps, generator=torch.Generator().manual_seed(0), **call).images[0]

    image.save(out)
    print(handle.explain())  # what was found, what it saves, what it costs
    print(handle)
    return handle


if __name__ == "__main__":
    main()
