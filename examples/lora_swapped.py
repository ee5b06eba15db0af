"""Two LoRA adapters on one accelerated FLUX, changed from picture to picture.

Each adapter is a graph of its own, compiled when it is first used and found again ever after. What was computed with one adapter
never serves a run with the other: a run begins without anything to forecast from.
"""

from typing import Any

import torch
from diffusers import DiffusionPipeline

import taylorseer_fx

PROMPT = "a red fox in the snow"
ADAPTERS = {
    "realism": "XLabs-AI/flux-RealismLora",
    "ghibli": "alvarobartt/ghibli-characters-flux-lora",
}


def load() -> DiffusionPipeline:
    """Load the published weights onto the GPU."""
    return DiffusionPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16).to("cuda")


def main(
    pipe: Any = None, adapters: dict[str, Any] = ADAPTERS, out: str = "flux-{}.png", num_steps: int = 50, **call: Any
) -> list[Any]:
    """Generate with one adapter after the other, twice; ``call`` holds further arguments of the pipeline's call."""
    pipe = pipe if pipe is not None else load()
    for name, source in adapters.items():
        pipe.load_lora_weights(source, adapter_name=name)
    handle = taylorseer_fx.accelerate(pipe, speedup=5.0)

    images = []
    for i, name in enumerate([*adapters, *adapters]):
        pipe.set_adapters(name)
        images += pipe(PROMPT, num_inference_steps=num_steps, generator=torch.Generator().manual_seed(0), **call).images
        images[-1].save(out.format(f"{name}-{i // len(adapters)}"))
        print(f"{name}: {handle.stats().graphs} graphs so far")
    return images


if __name__ == "__main__":
    main()
