"""Two ranks share a model, in each of the ways that users have: results are those of one process, and forecast steps communicate
no more than they must.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import taylorseer_fx
from examples import flux, over_several_gpus
from taylorseer_fx.text import format_bytes
from tests import zoo
from tests.distributed.ranks import needs_gloo, run_ranks
from tests.distributed.tasks import Cell, Ran, run_cell, run_guided
from tests.test_examples import SMALL
from tests.test_examples import flux as tiny_flux
from tests.turns import in_turns

pytestmark = [needs_gloo, pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")]

GRANULARITIES = ("module", "stack")
SPLITS_TOKENS = ("ulysses", "ring")  # so each rank keeps buffers of its part
FORECAST = {  # collectives of a forecast step: what is left is the gather of the output, or of the weights that it reads
    "tensor": {},
    "ulysses": {"all_gather_into_tensor": 1},
    "ring": {"all_gather_into_tensor": 1},
}
EAGER = [
    *(Cell("flux", way, granularity) for way in ("tensor", "ulysses", "ring", "simple_fsdp") for granularity in GRANULARITIES),
    Cell("qwen_image", "tensor"),
    Cell("qwen_image", "ulysses"),
    Cell("wan", "ulysses"),
    Cell("wan", "ulysses", "stack"),
    Cell("wan", "ring"),
    Cell("wan_ti2v", "ulysses"),
]
WEEKS = 8
INDUCTOR = [
    Cell("flux", way, granularity, "inductor")
    for granularity in GRANULARITIES
    for way in ("tensor", "ulysses", "ring", "simple_fsdp")
]


def alone(cell: Cell) -> Ran:
    """The same model in this process only."""
    with torch.no_grad():
        return run_cell(replace(cell, way="alone", compiler="eager"))


def assert_as_alone(cell: Cell, ranks: list[Ran], tolerance: float) -> None:
    expected = alone(cell)
    for ran in ranks:
        assert ran.kinds == expected.kinds
        assert ran.num_graphs == 1
        assert ran.num_regions == expected.num_regions
        assert ran.rejected == expected.rejected
        for ours, theirs, first in zip(ran.generations, expected.generations, ranks[0].generations, strict=True):
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
            assert torch.equal(ours, first), "ranks differ"
        assert torch.equal(*ran.generations)
        assert ran.buffer_bytes == expected.buffer_bytes // (2 if cell.way in SPLITS_TOKENS else 1)
        assert ran.replicated_bytes == (ran.buffer_bytes if cell.way == "tensor" else 0)
    assert expected.kinds == 2 * "FFTTFTTFTT"


def assert_collectives(cell: Cell, ran: Ran) -> None:
    full, forecast = ({op: count for op, count, _ in ran.collectives[kind]} for kind in ("full", "forecast"))
    if cell.way == "simple_fsdp":  # gathers the weights that the step reads
        received = {kind: sum(num_bytes for *_, num_bytes in entries) for kind, entries in ran.collectives.items()}
        assert forecast.keys() == full.keys() == {"all_gather_into_tensor"}
        assert 0 < received["forecast"] < received["full"] / 3
    else:
        assert forecast == FORECAST[cell.way]
        assert sum(full.values()) > sum(forecast.values())


@pytest.mark.parametrize(
    "cells", in_turns([EAGER[i::WEEKS] for i in range(WEEKS)], WEEKS), ids=lambda cells: " ".join(map(str, cells))
)
def test_eager(cells, tmp_path):
    """Several in the same processes: to start them takes longer than most of these."""
    ranks = run_ranks("run_cells", tmp_path, cells)
    for cell in cells:
        assert_as_alone(cell, [results[cell] for results in ranks], 1e-5)
        assert_collectives(cell, ranks[0][cell])


@pytest.mark.inductor
@pytest.mark.parametrize("cell", in_turns(INDUCTOR, 3 * len(INDUCTOR)), ids=str)
def test_inductor(cell, tmp_path):
    ranks = run_ranks("run_cell", tmp_path, cell)
    assert_as_alone(cell, ranks, 1e-4)
    assert_collectives(cell, ranks[0])


@pytest.mark.turn(6, 8)
def test_fully_shard(tmp_path):
    """Right, but its hooks gather all weights in each step, which is reported with their bytes."""
    expected = alone(Cell("flux", "alone"))
    num_bytes = sum(parameter.numel() * 4 for parameter in zoo.flux().model.parameters())
    for ran, notices in run_ranks("run_fully_sharded", tmp_path, "module"):
        assert ran.kinds == expected.kinds
        for ours, theirs in zip(ran.generations, expected.generations, strict=True):
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        (notice,) = [notice for notice in notices if "fully_shard" in notice]
        assert f"gather all {format_bytes(num_bytes)} of them" in notice


@pytest.mark.parametrize(
    ("granularity", "compiler"),
    in_turns([("module", "inductor"), ("stack", "inductor"), ("module", "eager"), ("stack", "eager")], 8),
)
def test_a_rank_for_each_half_of_guidance(granularity, compiler, tmp_path):
    """No collective is in the graph; a rank holds the buffers of its half."""
    with torch.no_grad():
        alone = run_guided(granularity, "eager")
    ranks = run_ranks("run_guided", tmp_path, granularity, compiler)
    for ran in ranks:
        assert ran.collectives == {"full": [], "forecast": []}
        assert ran.kinds == alone.kinds
        assert torch.equal(ran.generations[0], ranks[0].generations[0])
        assert torch.equal(*ran.generations)
        tolerance = 1e-5 if compiler == "eager" else 1e-4
        assert (ran.generations[0] - alone.generations[0]).abs().max() <= tolerance * alone.generations[0].abs().max()


@pytest.mark.turn(2, 8)
def test_example(tmp_path, monkeypatch):
    """The picture is that of one process, which the first rank saves."""
    assert run_ranks("run_example", tmp_path / "ranks", 10, str(tmp_path)) == [(2, 8), (2, 8)]
    monkeypatch.setattr(taylorseer_fx, "accelerate", partial(taylorseer_fx.accelerate, compiler="eager"))
    monkeypatch.setattr(flux, "PROMPT", over_several_gpus.PROMPT)
    torch.manual_seed(0)
    flux.main(tiny_flux(), str(tmp_path / "alone.png"), 10, **SMALL)
    shared, alone = (np.asarray(Image.open(tmp_path / name), dtype=float) for name in ("picture.png", "alone.png"))
    assert np.abs(shared - alone).max() <= 1
