"""Calibrate once, use ever after: where the full steps of a run should stand is found by trying, and kept in a file.

Calibrating runs the model some dozens of times on a few samples with fixed seeds. The file is small, and may be shared, also as a
repository of the Hugging Face hub: ``accelerate(pipe, plan="someone/dit-plans")``.
"""

from typing import Any

import torch
from diffusers import DiTPipeline

import taylorseer_fx

CLASSES = [207, 360, 387, 974]  # of ImageNet, to calibrate on


def load() -> DiTPipeline:
    """Load the published weights."""
    return DiTPipeline.from_pretrained("facebook/DiT-XL-2-256").to("cuda" if torch.cuda.is_available() else "cpu")


def generate(pipe: Any, label: int, num_steps: int, **call: Any) -> Any:
    """Make a picture, the same one each time."""
    return pipe([label], num_inference_steps=num_steps, generator=torch.Generator().manual_seed(label), **call).images[0]


def calibrate(pipe: Any, path: str, num_steps: int, num_full: tuple[int, ...], **call: Any) -> None:
    """Find the best lists of ``num_full`` full steps each, and write them to ``path``."""

    def run() -> list[Any]:  # one at a time, as they will be made: a plan is for a batch size, too
        return [generate(pipe, label, num_steps, **call) for label in CLASSES]

    with taylorseer_fx.accelerate(pipe, order=1) as handle:
        found = taylorseer_fx.calibrate(
            run, handle.backends["transformer"], num_steps, full_steps=num_full, granularities=("module",), on_trial=print
        )
    found.plan().save(path)


def main(
    pipe: Any = None,
    path: str = "dit-plan.json",
    out: str = "dit-planned.png",
    num_steps: int = 50,
    num_full: tuple[int, ...] = (10, 13),
    **call: Any,
) -> taylorseer_fx.Acceleration:
    """Calibrate, then generate by the plan; ``call`` holds further arguments of the pipeline's call."""
    pipe = pipe if pipe is not None else load()
    calibrate(pipe, path, num_steps, num_full, **call)

    handle = taylorseer_fx.accelerate(pipe, plan=path)
    generate(pipe, 88, num_steps, **call).save(out)  # a macaw
    print(handle)
    return handle


if __name__ == "__main__":
    main()
