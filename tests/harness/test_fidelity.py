"""The table of how near forecasts come: a cell is what a run by hand gives, and the page is the record's."""

from pathlib import Path

import pytest
import torch

from benchmarks.fidelity.cells import GRANULARITIES, PAPER, Cell, cells, ways
from benchmarks.fidelity.document import Figures, page
from benchmarks.fidelity.measure import recorded
from benchmarks.fidelity.subjects import SUBJECTS, Compiled, Noise, decibels
from taylorseer_fx import taylorseer_backend
from taylorseer_fx.judging import papers_list
from taylorseer_fx.runtime.schedule import Schedule
from tests.turns import in_turns

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_each_cell_has_as_many_full_steps_as_it_says(granularity):
    found = list(cells("digits", granularity))
    assert len({cell.key for cell in found}) >= len(set(found)) > 100
    for cell in found:
        if cell.kind != "fewer steps":
            steps = ways(cell.num_steps, cell.num_full)[cell.kind]
            assert len(steps) == cell.num_full
            assert steps[-1] < cell.num_steps


def test_papers_schedules():
    assert papers_list(50, 10, 3) == (0, 1, 2, 8, 14, 20, 26, 32, 38, 44)
    assert papers_list(28, 8, 3) == (0, 1, 2, 7, 12, 17, 22, 27)
    assert papers_list(28, 16, 3) is None


def test_decibels_of_each_picture():
    """An error of 0.2 in a range of 2 is 20 dB; what the screen cannot show is no error; equal pictures count as 100."""
    reference = torch.zeros(3, 1, 2, 2)
    pictures = torch.stack([reference[0] + 0.2, reference[0], reference[0] + 5])
    assert decibels(pictures, reference).tolist() == [pytest.approx(20.0, abs=1e-4), 100.0, pytest.approx(6.02, abs=0.01)]


@pytest.mark.parametrize("subject", in_turns(SUBJECTS, weeks=2), ids=lambda subject: subject.name)
def test_a_cell_is_what_a_backend_of_its_own_gives(subject):
    """Order, forecaster and schedule are set on one that is compiled for all of them."""
    noise, settings = Noise(seed=3, classes=(1, 7), count=2), {"order": 2, "forecaster": "newton"}
    steps = (0, 2, 3, 6)
    drawn = Compiled(subject, "module", "eager").draw(noise, 8, 2.0, Schedule(full_steps=steps, num_steps=8), **settings)
    torch.compiler.reset()
    backend = taylorseer_backend(full_steps=steps, compiler="eager", **settings)
    model = torch.compile(subject.load().requires_grad_(False), backend=backend)
    by_hand = subject.sample(model, noise.labels, num_steps=8, guidance_scale=2.0, seed=3)
    torch.testing.assert_close(drawn, by_hand, rtol=1e-4, atol=1e-5)


def test_gains_are_over_the_best_of_what_is_named():
    setting = ("digits", "module", 50, 2.0, 8)
    means = {"default": 36.0, PAPER: 33.0, "paper, warm-up 1": 35.0}
    content = {"cells": {Cell(*setting, kind).key: {"mean_db": mean} for kind, mean in means.items()}}
    figures = Figures(content)
    assert figures.gain(Cell(*setting, "default"), PAPER) == 3.0
    assert figures.gain(Cell(*setting, "default"), PAPER, "paper, warm-up 1") == 1.0
    assert figures.gain(Cell(*setting, "default"), "paper, warm-up 2") is None


def test_the_page_is_the_records():
    assert PAGE.read_text() == page(recorded())
