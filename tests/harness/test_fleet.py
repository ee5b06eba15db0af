"""Pictures for the Frechet distances by several workers: the same as in this process, of every method that is compared."""

import pytest
import torch

pytest.importorskip("ray", reason="Ray is not installed: pip install 'taylorseer-fx[ray]'")

from ray import cloudpickle

from taylorseer_fx import cli
from taylorseer_fx.bench import claims
from taylorseer_fx.bench.claims import Cell, Sampler
from taylorseer_fx.bench.fleet import BatchesOfMethod, draw_batches
from taylorseer_fx.bench.methods.diffusers_caches import diffusers_full_steps
from taylorseer_fx.bench.methods.ours import Ours
from taylorseer_fx.bench.running import Case
from taylorseer_fx.bench.suite import every_method
from taylorseer_fx.bench.workloads import digits
from tests.fleets.in_this_process import replace_workers


@pytest.fixture(autouse=True)
def _no_workers(monkeypatch):
    replace_workers(monkeypatch)


@pytest.fixture(scope="module")
def case() -> Case:
    workload = digits(num_images=3, num_steps=5)
    return Case(workload, workload.build(), diffusers_full_steps(5))


@pytest.mark.turn(1, 2)
def test_of_a_method(case):
    method = Ours(1, "stack", compiler="eager")
    drawn = draw_batches(BatchesOfMethod(method, case), 2, workers=2)
    runner = method.prepare(case)
    assert torch.equal(drawn, torch.cat([runner.run(seed=0), runner.run(seed=1)]))


@pytest.mark.turn(2, 4)
def test_of_a_cell(monkeypatch):
    """Of few batches in this process."""
    here, there = (Sampler(batch=4, compiler="eager", num_steps=6, workers=workers) for workers in (0, 2))
    cell, asked = Cell("stack", 1, 3, 8), []
    monkeypatch.setattr(claims, "draw_batches", lambda *given: asked.append(given) or draw_batches(*given))
    expected = here(cell)
    assert torch.equal(there(cell), expected)
    assert asked == []
    monkeypatch.setattr(claims, "MIN_BATCHES", 1)
    assert torch.equal(there(cell), expected)
    assert len(asked) == 1


def test_every_method_can_be_sent(case):
    for method in every_method():
        assert cloudpickle.loads(cloudpickle.dumps(method)) == method
    sent = cloudpickle.loads(cloudpickle.dumps(BatchesOfMethod(every_method()[0], case)))
    assert sent.case.full_steps == case.full_steps
    weights, there = (list(each.original.transformer.parameters()) for each in (case, sent.case))
    assert all(torch.equal(*pair) for pair in zip(weights, there, strict=True))


def test_batches_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="samples must be a multiple of 4, got 42"):
        Sampler(batch=4, workers=2)(Cell("full", 0, 1, 42))


def test_a_number_of_workers_below_none(capsys):
    assert cli.main(["bench", "digits", "--workers", "-1"]) == 2
    assert "--workers must be at least 0, got -1" in capsys.readouterr().err
