"""A whole run of 50 steps beside plain torch.compile: a full step, a forecast step, and the speed-up against the ceiling."""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.timing import paired_steps
from benchmarks.workloads import Workload, dit_s2
from taylorseer_fx import taylorseer_backend

NUM_STEPS = 50


@pytest.mark.parametrize("order", [1, 2])
def test_steps(benchmark: BenchmarkFixture, order: int) -> None:
    """Times a run of ours; the ratios to plain torch.compile, taken step by step in the same run, are in ``extra_info``."""
    workload = dit_s2()
    backend = taylorseer_backend(order)
    plain = _stepper(workload, torch.compile(workload.model))
    ours = _stepper(workload, torch.compile(workload.model, backend=backend))
    plain(0)
    ours(0)
    backend.reset()
    schedule = backend.config.schedule
    paired = paired_steps(plain, ours, [schedule.is_full(step) for step in range(NUM_STEPS)], rounds=3)
    benchmark.pedantic(lambda: [ours(step) for step in range(NUM_STEPS)], rounds=2)
    benchmark.extra_info.update(
        workload=workload.name,
        order=order,
        schedule=schedule.describe(NUM_STEPS),
        full_over_plain=paired.full_over_plain,
        forecast_over_full=paired.forecast_over_full,
        speedup_over_plain=paired.speedup,
        ceiling=paired.ceiling,
        buffer_bytes=backend.stats().buffer_bytes,
    )


def _stepper(workload: Workload, compiled: Callable[..., object]) -> Callable[[int], object]:
    def run(step: int) -> object:
        with torch.no_grad():
            return compiled(**workload.inputs(step))

    return run
