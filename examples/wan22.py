"""Wan 2.2: one transformer denoises the first, noisy steps of a video and another the rest. Both are accelerated."""

from typing import Any

import torch
from diffusers import DiffusionPipeline

import taylorseer_fx

PROMPT, NEGATIVE = "a red fox in the snow", "blurred"


def load() -> DiffusionPipeline:
    """Load the published weights; only the model that runs is on the GPU."""
    pipe = DiffusionPipeline.from_pretrained("Wan-AI/Wan2.2-T2V-A14B-Diffusers", torch_dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    return pipe


def main(pipe: Any = None, out: str = "wan22.gif", num_steps: int = 40, **call: Any) -> taylorseer_fx.Acceleration:
    """Generate and save a video; ``call`` holds further arguments of the pipeline's call."""
    pipe = pipe if pipe is not None else load()
    handle = taylorseer_fx.accelerate(pipe, speedup=4.0)

    frames = pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=num_steps,
        guidance_scale=4.0,
        guidance_scale_2=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pil",
        **call,
    ).frames[0]

    frames[0].save(out, save_all=True, append_images=frames[1:], duration=1000 // 16)
    for name, backend in handle.backends.items():  # a line each for "transformer" and "transformer_2"
        print(name, backend.stats())
    return handle


if __name__ == "__main__":
    main()
