"""What the passes take: finding the regions of full-size models traced on the meta device, and how that grows with depth."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from taylorseer_fx import plan
from taylorseer_fx.bench import models
from taylorseer_fx.bench.geometries import GEOMETRIES

Case = tuple[nn.Module, dict[str, Any]]


def dit(num_layers: int) -> Case:
    """DiT-XL/2 of another depth."""
    model = models.dit_xl2(num_layers)
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


FULL_SIZE = {"FLUX.1-dev": "FLUX.1-dev", "HunyuanVideo": "HunyuanVideo", "Wan 2.1 14B": "Wan2.1-14B"}  # as plan knows them


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size(benchmark: BenchmarkFixture, name: str) -> None:
    assert measure(benchmark, name, GEOMETRIES[FULL_SIZE[name]].on_meta)["find_regions_ms"] < 1000


@pytest.mark.parametrize("num_layers", [10, 20, 40, 80])
def test_depth(benchmark: BenchmarkFixture, num_layers: int) -> None:
    measured = measure(benchmark, f"DiT-XL, {num_layers} blocks", lambda: dit(num_layers))
    assert measured["num_regions"] == 2 * num_layers
