"""What the docs' code needs to run: tiny pipelines in place of the published weights, and a tiny model for loops by hand."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DiTPipeline
from PIL import Image
from torch import nn

import taylorseer_fx
from taylorseer_fx.passes import runner
from tests.documented import inputs, tiny_dit
from tests.pipelines import CASES
from tests.pipelines.zoo import PipelineCase

CASE_OF = {
    "black-forest-labs/FLUX.1-dev": "flux",
    "stabilityai/stable-diffusion-3-medium-diffusers": "sd3",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan",
    "hunyuanvideo-community/HunyuanVideo": "hunyuan-video",
    "Qwen/Qwen-Image": "qwen-image",
    "facebook/DiT-XL-2-256": "dit",
}
NUM_STEPS = 6  # at most, of a pipeline's run; those of docs/calibration.md


def stand_in(name: str) -> Any:
    """The tiny pipeline for the weights ``name``: takes the call of the real one, and returns small pictures."""
    case = CASES[CASE_OF[name]]
    pipe = case.build()
    for blocks in pipe.transformer.children():
        if isinstance(blocks, nn.ModuleList):
            del blocks[1:]  # one of each kind: tracing takes nearly all of the time
    kind = type(pipe)
    pipe.__class__ = type(kind.__name__, (kind,), {"__call__": _method(case, kind), "to": lambda self, *_: self})
    return pipe


def _method(case: PipelineCase, kind: type) -> Any:
    def call(self: Any, prompt: Any = None, num_inference_steps: int = 50, **given: Any) -> Any:
        arguments = case.kwargs(min(num_inference_steps, NUM_STEPS), 0) | {"return_dict": False}
        if isinstance(prompt, list):  # classes
            arguments |= {"class_labels": prompt}
        arguments |= {name: given[name] for name in ("generator", "true_cfg_scale") if name in given}
        pixels = kind.__call__(self, **arguments)[0].float().flatten(1).numpy()
        pictures = [Image.fromarray(np.uint8(255 * (row - row.min()) / np.ptp(row)).reshape(1, -1)) for row in pixels]
        return SimpleNamespace(images=pictures, frames=[pictures])

    return call


def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that a page's code may use without making them; what it imports is replaced where it would be large or slow."""
    monkeypatch.setattr(runner, "always_verifies", False)  # other tests verify the same models
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda name, **_: stand_in(name))
    monkeypatch.setattr("diffusers.utils.export_to_video", lambda frames, path, fps: path)
    for name in ("accelerate", "taylorseer_backend"):
        monkeypatch.setattr(taylorseer_fx, name, partial(getattr(taylorseer_fx, name), compiler="eager"))
    _few_rows(monkeypatch)
    steps = [inputs(step) for step in range(12)]
    return {
        "torch": torch,
        "taylorseer_fx": taylorseer_fx,
        "taylorseer_backend": taylorseer_fx.taylorseer_backend,
        "DiTPipeline": DiTPipeline,
        "model": tiny_dit(),
        "timesteps": [step["timestep"] for step in steps],
        "latents": steps[0]["hidden_states"],
        "labels": steps[0]["class_labels"],
    }


def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fleets of this process, which draw the first rows only."""
    try:
        import taylorseer_fx.ray
    except ModuleNotFoundError:
        return
    from tests.fleets.in_this_process import replace_workers

    replace_workers(monkeypatch)
    sample = taylorseer_fx.ray.sample
    monkeypatch.setattr(taylorseer_fx.ray, "sample", lambda build, rows, *rest, **given: sample(build, rows[:4], *rest, **given))
