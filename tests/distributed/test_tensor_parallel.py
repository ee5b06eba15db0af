"""Tensor parallelism with torch's own styles: a DiT shared by two processes, as DTensors."""

import pytest
import torch

from taylorseer_fx.text import format_bytes
from tests.composition.session import assert_close
from tests.distributed.ranks import needs_gloo, run_ranks
from tests.distributed.small_dit import NUM_BLOCKS, inputs, small_dit
from tests.distributed.tasks import NUM_STEPS, SETTINGS
from tests.reference import HookReference

pytestmark = needs_gloo


def expected_outputs() -> list[torch.Tensor]:
    model = small_dit()
    modules = [module for block in model.blocks for module in (block.attention, block.mlp)]
    reference = HookReference(model, modules, **SETTINGS)
    with torch.no_grad():
        return [reference(step, inputs(step)) for step in range(NUM_STEPS)]


@pytest.mark.turn(1, 6)
def test_tensor_parallel(tmp_path):
    """A forecast step communicates nothing, since all it would have to sum up is forecast, and what nobody reads is gone.

    Both ranks execute and forecast the same steps (else they would wait for one another forever) and agree on every output.
    """
    ranks = run_ranks("run_small_dit", tmp_path, "eager")
    expected = expected_outputs()
    for ran, _ in ranks:
        ((op, count, _),) = ran.collectives["full"]
        assert (op, count) == ("all_reduce", 2 * NUM_BLOCKS)
        assert ran.collectives["forecast"] == []
        assert ran.num_regions == 2 * NUM_BLOCKS
        assert ran.rejected == []
        assert f"each rank keeps the same {format_bytes(ran.buffer_bytes)} of buffers" in ran.report
        assert ran.kinds == 2 * "FFTTFTTFTT"
        assert torch.equal(*ran.generations)
        assert torch.equal(ran.generations[0], ranks[0][0].generations[0])
        assert_close(list(ran.generations[0]), expected, 1e-5)


@pytest.mark.inductor
@pytest.mark.turn(10, 12)
def test_warm_start(tmp_path):
    """A second pair of processes loads what the first has compiled: the key of a graph is the same, whatever Python's hash of a
    device mesh.
    """
    cold = run_ranks("run_small_dit", tmp_path / "cold", "inductor", cache=tmp_path / "cache")
    warm = run_ranks("run_small_dit", tmp_path / "warm", "inductor", cache=tmp_path / "cache")
    for (cold_ran, cold_counts), (warm_ran, warm_counts) in zip(cold, warm, strict=True):
        assert (cold_counts["autograd_cache_miss"], cold_counts["autograd_cache_hit"]) == (1, 0)
        assert (warm_counts["autograd_cache_miss"], warm_counts["autograd_cache_hit"]) == (0, 1)
        assert torch.equal(cold_ran.generations[1], warm_ran.generations[1])
        assert_close(list(warm_ran.generations[0]), expected_outputs(), 1e-4)
