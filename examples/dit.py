"""DiT-XL/2 by hand: ``torch.compile`` with our backend, and ``attach``. Runs on a CPU, too."""

from typing import Any

import torch
from diffusers import DiTPipeline, DPMSolverMultistepScheduler

from taylorseer_fx import TaylorSeerBackend, taylorseer_backend

CLASSES = [207, 360]  # of ImageNet: a golden retriever, an otter


def load() -> DiTPipeline:
    """Load the published weights."""
    pipe = DiTPipeline.from_pretrained("facebook/DiT-XL-2-256")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def main(pipe: Any = None, out: str = "dit-{}.png", num_steps: int = 50, **call: Any) -> TaylorSeerBackend:
    """Generate and save a picture of each class; ``call`` holds further arguments of the pipeline's call."""
    pipe = pipe if pipe is not None else load()
    backend = taylorseer_backend(order=2, interval=5, warmup=3)
    pipe.transformer = torch.compile(pipe.transformer, backend=backend)
    backend.attach(pipe)

    images = pipe(CLASSES, num_inference_steps=num_steps, generator=torch.Generator().manual_seed(0), **call).images

    for label, image in zip(CLASSES, images, strict=True):
        image.save(out.format(label))
    print(backend.explain())
    return backend


if __name__ == "__main__":
    main()
