"""Each example runs from beginning to end, on a tiny pipeline in place of the published weights."""

import importlib
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DiTPipeline, WanPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor

import taylorseer_fx
from taylorseer_fx.bench import models, tiny_text
from taylorseer_fx.bench.pipelines import flux_pipeline, quiet, randomize, tiny_vae, tiny_wan_vae, wan_scheduler
from taylorseer_fx.bench.workloads import tiny_flux_transformer, tiny_wan_transformer

ELSEWHERE = {"server_streams", "ray_serve", "over_several_gpus"}  # two have a test of their own, one is in tests/distributed
FOLDER = Path(__file__).parents[1] / "examples"
SMALL = {"height": 8, "width": 8, "max_sequence_length": tiny_text.LENGTH}


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a folder of its own, and without Inductor, which takes seconds for a graph however small."""
    monkeypatch.chdir(tmp_path)
    eager = partial(taylorseer_fx.accelerate, compiler="eager")
    monkeypatch.setattr(taylorseer_fx, "accelerate", eager)


def example(name: str) -> Any:
    return importlib.import_module(f"examples.{name}")


def flux() -> DiffusionPipeline:
    text: dict[str, Any] = {"text_encoder": tiny_text.clip(), "text_encoder_2": tiny_text.t5()}
    text |= {"tokenizer": tiny_text.tokenizer(), "tokenizer_2": tiny_text.tokenizer()}
    return flux_pipeline(tiny_flux_transformer(), tiny_vae(), **text)


def dit() -> DiTPipeline:
    transformer = randomize(models.dit(num_layers=2, num_heads=2, head_dim=8, sample_size=8))
    return quiet(DiTPipeline(transformer=transformer, vae=tiny_vae(), scheduler=DDIMScheduler(clip_sample=False)))


def wan22() -> WanPipeline:
    pipe = WanPipeline(
        transformer=tiny_wan_transformer(),
        transformer_2=randomize(tiny_wan_transformer(), seed=1),
        boundary_ratio=0.9,
        vae=tiny_wan_vae(),
        scheduler=wan_scheduler(),
        tokenizer=tiny_text.tokenizer(),
        text_encoder=tiny_text.t5(),
    )
    return quiet(pipe)


def pixels(path: str) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def test_every_example_is_listed_and_run():
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert len(names) == 10
    listed = re.findall(r"\]\((\w+)\.py\)", (FOLDER / "README.md").read_text())
    assert sorted(listed) == sorted(names)
    assert {name.removeprefix("test_") for name in globals() if name.startswith("test_")} >= names - ELSEWHERE


def test_flux(capsys):
    handle = example("flux").main(flux(), num_steps=10, **SMALL)
    assert (handle.stats().full_calls, handle.stats().forecast_calls) == (2, 8)
    assert pixels("flux.png").std() > 0
    assert "10 steps full" in (printed := capsys.readouterr().out)
    assert printed.endswith("2 full calls, 8 forecast\n")


def test_wan22(capsys):
    handle = example("wan22").main(wan22(), num_steps=12, height=64, width=64, num_frames=5, max_sequence_length=8)
    each = [backend.stats() for backend in handle.backends.values()]
    assert all(stats.full_calls and stats.forecast_calls for stats in each)
    assert sum(stats.full_calls + stats.forecast_calls for stats in each) == 2 * 12
    with Image.open("wan22.gif") as video:
        assert video.n_frames > 1
    assert re.findall(r"^transformer\w*", capsys.readouterr().out, re.MULTILINE) == ["transformer", "transformer_2"]


@pytest.mark.inductor
def test_dit():
    """With Inductor, as it is written."""
    backend = example("dit").main(dit(), num_steps=12)
    assert (backend.stats().full_calls, backend.stats().forecast_calls) == (4, 8)
    assert pixels("dit-207.png").shape == pixels("dit-360.png").shape == (8, 8, 3)


def test_by_repeated_blocks(capsys):
    handle = example("by_repeated_blocks").main(flux(), num_steps=10, **SMALL)
    assert "compiled by its 4 repeated blocks" in str(handle)
    assert handle.stats().forecast_calls == 4 * handle.stats().full_calls > 0
    assert not np.array_equal(pixels("flux-0.png"), pixels("flux-1.png"))
    assert capsys.readouterr().out.count(" s with compiling") == 1


def test_two_requests_at_once():
    """Each gets what it gets when it is served alone."""
    server = example("two_requests_at_once")
    together = server.main(dit(), num_steps=(12, 9))
    for name, label, num_steps, seed in (("retriever", 207, 12, 0), ("otter", 360, 9, 1)):
        pipe = dit()
        request = server.Request(pipe, name, label, num_steps, seed)
        with torch.no_grad(), taylorseer_fx.accelerate(pipe, order=1, interval=5, warmup=3) as handle:
            server.serve([request], pipe.transformer, handle)
        assert torch.equal(together[name], request.latents)
        assert handle.stats().forecast_calls == num_steps - (3 + (num_steps - 3) // 5)
    assert not np.array_equal(pixels("retriever.png"), pixels("otter.png"))


def lora(seed: int) -> dict[str, Tensor]:
    """Weights of an adapter on attention and MLP, large enough to change the picture."""
    model = tiny_flux_transformer()
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "proj_mlp", "net.2"]))
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: weight.shape for name, weight in get_peft_model_state_dict(model).items()}
    return {f"transformer.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_lora_swapped(capsys):
    adapters = {"first": lora(1), "second": lora(2)}
    images = example("lora_swapped").main(flux(), adapters, num_steps=10, **SMALL)
    first, second, again, second_again = map(np.asarray, images)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, again)
    assert np.array_equal(second, second_again)
    assert re.findall(r"\d+(?= graphs)", capsys.readouterr().out)[1:] == ["2", "2", "2"]


def test_calibrate_then_use(monkeypatch):
    calibration = example("calibrate_then_use")
    monkeypatch.setattr(calibration, "CLASSES", [207])
    handle = calibration.main(dit(), num_steps=6, num_full=(3,))
    assert "plan for 6 steps" in str(handle)
    assert (handle.stats().full_calls, handle.stats().forecast_calls) == (3, 3)
    assert pixels("dit-planned.png").shape == (8, 8, 3)
