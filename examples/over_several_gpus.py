"""One picture by several GPUs: each rank has a part of the tokens, and forecast steps communicate the output only.

torchrun --nproc-per-node 2 examples/over_several_gpus.py
"""

from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, DiffusionPipeline

import taylorseer_fx

PROMPT = "a lighthouse in fog, at dawn"


def load() -> DiffusionPipeline:
    """Load the published weights onto the GPU of this rank."""
    dist.init_process_group("nccl")
    torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
    return DiffusionPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16).to("cuda")


def main(pipe: Any = None, out: str = "flux.png", num_steps: int = 50, **call: Any) -> taylorseer_fx.Acceleration:
    """Generate a picture, which the first rank saves; ``call`` holds further arguments of the pipeline's call."""
    pipe = pipe if pipe is not None else load()
    pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=dist.get_world_size()))
    handle = taylorseer_fx.accelerate(pipe, speedup=5.0, compile="whole")

    # The same noise on every rank, each of which then takes its part of the tokens.
    image = pipe(PROMPT, num_inference_steps=num_steps, generator=torch.Generator().manual_seed(0), **call).images[0]
    if dist.get_rank() == 0:
        image.save(out)
        print(handle.explain())
    return handle


if __name__ == "__main__":
    main()
    dist.destroy_process_group()
