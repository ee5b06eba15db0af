"""What the passes take: finding the regions of full-size models traced on the meta device, and how that grows with depth."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, HunyuanVideoTransformer3DModel, WanTransformer3DModel
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from taylorseer_fx import plan

Case = tuple[nn.Module, dict[str, Any]]


def flux_dev() -> Case:
    """FLUX.1-dev at 1024x1024: 19 double and 38 single blocks (its defaults), 4096 image and 512 text tokens."""
    return FluxTransformer2DModel(guidance_embeds=True), {
        "hidden_states": torch.empty(1, 4096, 64),
        "encoder_hidden_states": torch.empty(1, 512, 4096),
        "pooled_projections": torch.empty(1, 768),
        "timestep": torch.empty(1),
        "guidance": torch.empty(1),
        "img_ids": torch.empty(4096, 3),
        "txt_ids": torch.empty(512, 3),
    }


def hunyuan_video() -> Case:
    """HunyuanVideo at 480x640x65: 20 double and 40 single blocks (its defaults), latent 17x60x80, 256 text tokens."""
    return HunyuanVideoTransformer3DModel(guidance_embeds=True), {
        "hidden_states": torch.empty(1, 16, 17, 60, 80),
        "timestep": torch.empty(1, dtype=torch.long),
        "encoder_hidden_states": torch.empty(1, 256, 4096),
        "encoder_attention_mask": torch.ones(1, 256),
        "pooled_projections": torch.empty(1, 768),
        "guidance": torch.empty(1),
    }


def wan_14b() -> Case:
    """Wan 2.1 14B at 480x832x81: 40 blocks of width 5120 (its defaults), latent 21x60x104, 512 text tokens."""
    return WanTransformer3DModel(), {
        "hidden_states": torch.empty(1, 16, 21, 60, 104),
        "timestep": torch.empty(1, dtype=torch.long),
        "encoder_hidden_states": torch.empty(1, 512, 4096),
    }


def dit(num_layers: int) -> Case:
    """DiT-XL/2 of another depth."""
    model = DiTTransformer2DModel(num_attention_heads=16, attention_head_dim=72, num_layers=num_layers, sample_size=32)
    labels = {"class_labels": torch.empty(2, dtype=torch.long)}
    return model, {"hidden_states": torch.empty(2, 4, 32, 32), "timestep": torch.empty(2, dtype=torch.long), **labels}


def measure(benchmark: BenchmarkFixture, name: str, build: Callable[[], Case]) -> dict[str, Any]:
    """Plan a model once; what the passes took of it is in the report."""
    with torch.device("meta"):
        model, inputs = build()
    found = benchmark.pedantic(plan, (model.eval(), inputs), rounds=1)
    stages = {stage.name: stage for stage in found.reports[0].stages}
    benchmark.extra_info |= {
        "model": name,
        "num_ops": stages["canonicalize"].num_ops,
        "num_regions": len(found.regions),
        "find_regions_ms": stages["find_regions"].duration_ms,
        "passes_ms": sum(stage.duration_ms for stage in stages.values()),
    }
    return dict(benchmark.extra_info)


FULL_SIZE = {"FLUX.1-dev": flux_dev, "HunyuanVideo": hunyuan_video, "Wan 2.1 14B": wan_14b}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size(benchmark: BenchmarkFixture, name: str) -> None:
    assert measure(benchmark, name, FULL_SIZE[name])["find_regions_ms"] < 1000


@pytest.mark.parametrize("num_layers", [10, 20, 40, 80])
def test_depth(benchmark: BenchmarkFixture, num_layers: int) -> None:
    measured = measure(benchmark, f"DiT-XL, {num_layers} blocks", lambda: dit(num_layers))
    assert measured["num_regions"] == 2 * num_layers
