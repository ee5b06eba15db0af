"""``calibrate``: what it finds is what a run by hand gives, is never worse than the paper's schedule, and changes nothing."""

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taylorseer_fx import ConfigError, TaylorSeerBackend, taylorseer_backend
from taylorseer_fx.calibration import Calibration, calibrate
from taylorseer_fx.judging import papers_lists
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.samples import decibels, samples_of
from taylorseer_fx.search import cheapest, family, line_errors, neighbours, programmed, reuse_errors
from taylorseer_fx.trials import IN_FULL, trying
from tests.zoo import tiny, tiny_inputs

NUM_STEPS = 12


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def subject(**settings: Any) -> tuple[TaylorSeerBackend, Callable[[], Tensor]]:
    """A backend, and a run whose samples are the sums of its steps' outputs."""
    backend = taylorseer_backend(compiler="eager", **settings)
    model = torch.compile(tiny(), backend=backend, fullgraph=True)

    def run() -> Tensor:
        outputs = [model(**tiny_inputs(step, num_steps=NUM_STEPS)).clone() for step in range(NUM_STEPS)]
        return torch.stack(outputs).sum(0)

    return backend, run


@pytest.fixture(scope="module")
def calibrated() -> tuple[TaylorSeerBackend, Callable[[], Tensor], Calibration, list[str]]:
    lines: list[str] = []
    with torch.no_grad():
        backend, run = subject(order=2)
        found = calibrate(run, backend, NUM_STEPS, full_steps=(4, 6), orders=(1, 2), on_trial=lines.append)
    assert backend.stats().graphs == 1, "a schedule or an order is no other code"
    return backend, run, found, lines


class TestCalibrate:
    def test_all_that_was_asked_for(self, calibrated):
        _, _, found, _ = calibrated
        assert found.settings() == [(count, order, "module") for order in (1, 2) for count in (6, 4)]
        for setting in found.settings():
            lists = [trial.full_steps for trial in found.of(*setting)]
            assert len(set(lists)) == len(lists)
            assert all(len(steps) == setting[0] for steps in lists)

    def test_never_worse_than_the_papers(self, calibrated):
        _, _, found, _ = calibrated
        for setting in found.settings():
            paper = found.papers(*setting)
            assert paper is not None
            assert found.best(*setting).mean_db >= paper.mean_db

    def test_decibels_are_those_of_a_run_by_hand(self, calibrated):
        """Also of an order below the backend's, by a backend of that order."""
        _, _, found, _ = calibrated
        best = found.best(4, 1, "module")
        _, in_full = subject(interval=1, warmup=1)
        reference = samples_of(in_full())
        _, by_hand = subject(order=1, full_steps=best.full_steps)
        each = decibels(samples_of(by_hand()), reference)
        assert best.mean_db == pytest.approx(np.mean(each), abs=0.01)
        assert best.worst_db == pytest.approx(min(each), abs=0.01)

    def test_leaves_the_backend_as_it_was(self, calibrated):
        _, run, _, _ = calibrated
        _, other = subject(order=2)
        assert torch.equal(run(), other())

    def test_says_what_it_does(self, calibrated):
        *_, found, lines = calibrated
        assert lines[0] == "module: in full"
        assert len(lines) == 1 + len(found.trials)
        assert lines[1].startswith("module, order 1, 6 full, paper: ")

    def test_guidance_that_pauses(self):
        """The features of the half that pauses count where they are in the run."""
        backend, _ = subject(order=1)
        model = torch.compile(tiny(), backend=backend, fullgraph=True)

        def run() -> Tensor:
            calls = [(step, prompt) for step in range(NUM_STEPS) for prompt in (1.0, 0.5)[: 1 if 3 <= step < 7 else 2]]
            return sum(model(**tiny_inputs(step, num_steps=NUM_STEPS, prompt=prompt)) for step, prompt in calls)

        found = calibrate(run, backend, NUM_STEPS, full_steps=(6,))
        assert found.best(6, 1, "module").mean_db > 0

    def test_held_out_samples_choose_nothing(self):
        """The best list and the paper's are judged by them, too: as a run by hand judges."""
        backend, run = subject()

        def unseen() -> Tensor:
            return run().flip(0) * 2 + run()

        plainly = calibrate(run, backend, NUM_STEPS, full_steps=(4,), moves=0)
        found = calibrate(run, backend, NUM_STEPS, full_steps=(4,), moves=0, held_out=unseen)
        assert [trial.full_steps for trial in found.trials] == [trial.full_steps for trial in plainly.trials]
        best, paper = found.best(4, 1, "module"), found.papers(4, 1, "module")
        assert [trial for trial in found.trials if trial.held_out is not None] == [paper, best]
        with trying(backend, IN_FULL):
            reference = samples_of(unseen())
        with trying(backend, Schedule(full_steps=best.full_steps, num_steps=NUM_STEPS)):
            each = decibels(samples_of(unseen()), reference)
        assert best.held_out == (pytest.approx(np.mean(each)), pytest.approx(min(each)))
        point = found.plan().curve[0]
        assert point["held_out_mean_db"] == pytest.approx(np.mean(each), abs=0.01)
        assert point["paper_held_out_mean_db"] == pytest.approx(paper.held_out[0], abs=0.01)

    def test_another_granularity(self):
        """It is compiled for it, and the backend's own is compiled again afterwards."""
        backend, run = subject()
        before = run()
        found = calibrate(run, backend, NUM_STEPS, full_steps=(4,), granularities=("module", "stack"), moves=0)
        assert found.settings() == [(4, 1, "module"), (4, 1, "stack")]
        assert backend.explain().granularity == "stack"
        backend.reset()
        assert torch.equal(run(), before)
        assert backend.explain().granularity == "module"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_steps": 1}, "num_steps must be an int of at least 2"),
            ({"num_steps": 11}, "num_steps must be 12, the number of steps that run"),
            ({"num_steps": 13}, "num_steps must be 12, the number of steps that run"),
            ({"full_steps": (1,)}, "full_steps must be numbers of full steps, 2 to 12"),
            ({"full_steps": (13,)}, "full_steps must be numbers of full steps, 2 to 12"),
            ({"orders": (2,)}, "orders must be 0 to 1"),
            ({"granularities": ("block",)}, "granularities must be of 'module' and 'stack'"),
            ({"run": lambda: None}, "run must be a function that returns pictures"),
        ],
    )
    def test_wrong_arguments(self, arguments, message):
        backend, run = subject()
        with pytest.raises(ConfigError) as raised:
            calibrate(**{"run": run, "backend": backend, "num_steps": NUM_STEPS, "full_steps": (4,)} | arguments)
        assert str(raised.value).startswith(message)

    def test_buffers_of_eight_bits(self):
        """These are differences, whose number is the order."""
        backend, run = subject(order=2, buffer_dtype=torch.float8_e5m2)
        with pytest.raises(ConfigError, match="orders must be 2 to 2, which the backend has buffers for, got 1"):
            calibrate(run, backend, NUM_STEPS, full_steps=(4,), orders=(1,))
        assert calibrate(run, backend, NUM_STEPS, full_steps=(4,), moves=0).settings() == [(4, 2, "module")]

    def test_a_budget(self):
        backend, run = subject(memory_budget=10**9)
        with pytest.raises(ConfigError, match="memory_budget must be left out of a backend that is calibrated"):
            calibrate(run, backend, NUM_STEPS, full_steps=(4,))

    def test_a_run_that_makes_something_else(self):
        backend, run = subject()
        sizes = iter(range(1, 100))
        with pytest.raises(ConfigError, match="samples of the same shapes each time"):
            calibrate(lambda: run()[:, : next(sizes)], backend, NUM_STEPS, full_steps=(4,))


class TestTrying:
    def test_an_error_within(self):
        backend, run = subject()
        expected = run()
        with pytest.raises(RuntimeError, match="size"), trying(backend, IN_FULL, forecaster="newton"):
            run() @ torch.zeros(999)
        assert torch.equal(run(), expected)

    def test_no_forecast_in_full(self):
        backend, run = subject()
        with trying(backend, IN_FULL):
            run()
        assert backend.stats().forecast_calls == 0


class TestSearch:
    @given(st.integers(5, 9), st.integers(0, 1000), st.data())
    def test_the_dynamic_program_finds_the_least_cost(self, num_steps, seed, data):
        """As if every list had been tried."""
        num_full = data.draw(st.integers(1, num_steps))
        features = np.random.default_rng(seed).standard_normal((num_steps, 3)).cumsum(0)
        gram = features @ features.T
        errors, reuse = line_errors(gram), reuse_errors(gram)

        def cost(steps: tuple[int, ...]) -> float:
            total = 0.0
            for t in set(range(num_steps)) - set(steps):
                *_, last = before = [step for step in steps if step < t]
                if len(before) == 1:
                    forecast = features[0]
                else:
                    rise = (features[last] - features[before[-2]]) / (last - before[-2])
                    forecast = features[last] + (t - last) * rise
                total += float(np.square(features[t] - forecast).sum())
            return total

        found = cheapest(errors, reuse, num_full)
        lists = [(0, *others) for others in combinations(range(1, num_steps), num_full - 1)]
        assert found in lists
        assert cost(found) == pytest.approx(min(map(cost, lists)), abs=1e-9)

    def test_lists_of_the_family_and_the_program(self):
        gram = np.outer(*[np.arange(28.0) ** 2] * 2)
        for lists in (list(family(28, 8)), list(programmed(gram, 8))):
            assert len(set(lists)) == len(lists)
            assert all(len(steps) == 8 and steps[0] == 0 and steps[-1] < 28 for steps in lists)

    def test_neighbours(self):
        assert list(neighbours((0, 1, 4), 6)) == [(0, 2, 4), (0, 1, 3), (0, 1, 5)]

    def test_papers_schedules(self):
        """By the warm-ups of its code; the number of full steps is the same in all."""
        assert list(papers_lists(50, 12)) == [tuple(Schedule(5, 3).full_steps_of(50))]
        assert next(papers_lists(50, 10)) == tuple(Schedule(6, 3).full_steps_of(50))
        assert list(papers_lists(50, 49)) == []


class TestSamples:
    def test_of_what(self):
        from PIL import Image

        batch = torch.arange(12.0).reshape(2, 2, 3)
        pictures = [Image.new("RGB", (3, 2), (1, 2, 3))] * 2
        assert [each.shape for each in samples_of(batch)] == [(2, 3)] * 2
        assert [each.shape for each in samples_of([batch, batch.numpy()])] == [(2, 3)] * 4
        assert [each.shape for each in samples_of(pictures)] == [(2, 3, 3)] * 2
        assert samples_of(type("Output", (), {"images": pictures})())[0].max() == 3

    def test_peaks(self):
        """255 for pictures of bytes, and the range of the reference for all else."""
        zeros, ones = np.zeros((2, 2)), np.ones((2, 2))
        assert decibels([zeros + 10], [zeros + 20]) == [pytest.approx(20 * np.log10(25.5))]
        both = np.array([[-1.0, 1.0], [0.0, 0.0]])
        assert decibels([both + 0.2], [both]) == [pytest.approx(20)]
        assert decibels([ones], [ones]) == [np.inf]
        assert decibels([ones * np.nan], [both[:2]]) == [-np.inf]
