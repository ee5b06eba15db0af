"""Tensor parallelism over torch.distributed: a DiT shared by two processes, as DTensors."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.composition.distributed_worker import NUM_BLOCKS, NUM_STEPS, SETTINGS, inputs, small_dit
from tests.composition.session import assert_close
from tests.reference import HookReference

WORLD_SIZE = 2
ROOT = Path(__file__).parents[2]


def run_workers(directory: Path) -> list[dict[str, Any]]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    module = "tests.composition.distributed_worker"
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(WORLD_SIZE), str(directory)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD_SIZE)
    ]
    try:
        for worker in workers:
            printed, _ = worker.communicate(timeout=240)
            assert worker.returncode == 0, printed
    finally:
        for worker in workers:
            worker.kill()
    return [torch.load(directory / f"{rank}.pt") for rank in range(WORLD_SIZE)]


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed with gloo")
@pytest.mark.turn(1, 3)
def test_tensor_parallel(tmp_path):
    """All regions are found, and a forecast step communicates nothing, since all it would have to sum up is forecast.

    Both ranks execute and forecast the same steps (else they would wait for one another forever) and agree on every output.
    """
    ranks = run_workers(tmp_path)
    model = small_dit()
    modules = [module for block in model.blocks for module in (block.attention, block.mlp)]
    reference = HookReference(model, modules, **SETTINGS)
    with torch.no_grad():
        expected = [reference(step, inputs(step)) for step in range(NUM_STEPS)]
    forecast = [not reference.is_full(step) for step in range(NUM_STEPS)] * 2
    for rank in ranks:
        assert rank["collectives"]["full"] >= 2 * NUM_BLOCKS
        assert rank["collectives"]["forecast"] == 0
        assert rank["kinds"] == ["attention"] * NUM_BLOCKS + ["mlp"] * NUM_BLOCKS
        assert rank["rejected"] == 0
        assert rank["forecasts"] == torch.tensor(forecast).cumsum(0).tolist()
        first, second = rank["generations"]
        assert torch.equal(first, second)
        assert torch.equal(first, ranks[0]["generations"][0])
        assert_close(list(first), expected, 1e-5)
