"""DiT-XL/2, a whole run beside plain torch.compile at both granularities, against what its steps and its bytes allow at best.

Two ceilings. The plain one is steps over full steps, as if a forecast step were free. The byte ceiling charges every forecast
step the time in which its bytes (every input that it reads once, and the output) can be read, at the bandwidth of a copy measured
in the same run. A copy counts what it reads and what it writes; how fast the model's own weights can be summed up, which only
reads, is measured as well.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from benchmarks.timing import interleaved_steps
from benchmarks.workloads import Workload, dit_xl2
from taylorseer_fx import TaylorSeerBackend, taylorseer_backend

NUM_STEPS, ORDER = 50, 2


def test_floor(benchmark: BenchmarkFixture) -> None:
    """Plain, module and stack in turns, step by step; all ratios are taken between neighbours."""
    workload = dit_xl2()
    backends = {name: taylorseer_backend(ORDER, granularity=name) for name in ("module", "stack")}
    schedule = backends["module"].config.schedule
    is_full = [schedule.is_full(step) for step in range(NUM_STEPS)]
    runs = {"plain": _stepper(workload, "inductor")}
    runs |= {name: _stepper(workload, backend) for name, backend in backends.items()}
    for run in runs.values():
        for step in range(is_full.index(False) + 1):
            run(step)
    for backend in backends.values():
        backend.reset()
    copied, read = [copy_bandwidth()], [read_bandwidth(workload.model)]
    seconds = benchmark.pedantic(lambda: interleaved_steps(runs, NUM_STEPS), rounds=1)
    copied.append(copy_bandwidth())
    read.append(read_bandwidth(workload.model))
    copy_rate, read_rate = statistics.mean(copied), statistics.mean(read)
    benchmark.extra_info.update(
        workload=workload.name,
        order=ORDER,
        schedule=schedule.describe(NUM_STEPS),
        ceiling=len(is_full) / sum(is_full),
        copy_gigabytes_a_second=copy_rate / 1e9,
        read_gigabytes_a_second=read_rate / 1e9,
        plain_seconds_a_step=statistics.median(seconds["plain"]),
        **{
            name: figures(backend, seconds["plain"], seconds[name], is_full, copy_rate, read_rate)
            for name, backend in backends.items()
        },
    )


def figures(
    backend: TaylorSeerBackend, plain: list[float], ours: list[float], is_full: list[bool], copy_rate: float, read_rate: float
) -> dict[str, float]:
    """Of one granularity; seconds unless a ratio. Rates in bytes a second."""
    num_bytes = backend.explain().traffic["forecast"].floor
    byte_seconds = num_bytes / copy_rate
    full = [(a, b) for a, b, execute in zip(ours, plain, is_full, strict=True) if execute]
    forecast = [a for a, execute in zip(ours, is_full, strict=True) if not execute]
    plain_step = sum(plain) / len(plain)
    at_best = sum(is_full) * plain_step + len(forecast) * byte_seconds
    return {
        "full_over_plain": statistics.median(a / b for a, b in full),
        "forecast_seconds": statistics.median(forecast),
        "forecast_over_plain": statistics.median(forecast) / plain_step,
        "byte_seconds": byte_seconds,
        "forecast_over_bytes": statistics.median(forecast) / byte_seconds,
        "forecast_over_reading": statistics.median(forecast) * read_rate / num_bytes,
        "forecast_gigabytes": num_bytes / 1e9,
        "speedup_over_plain": sum(plain) / sum(ours),
        "byte_ceiling": sum(plain) / at_best,
        "buffer_bytes": backend.stats().buffer_bytes,
    }


def copy_bandwidth() -> float:
    """Bytes read and written a second by the best of ten copies of 256 MiB, more than the caches hold."""
    source = torch.ones(2**26)
    target = torch.empty_like(source).fill_(0)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(seconds)


def read_bandwidth(model: nn.Module) -> float:
    """Bytes read a second in summing up the weights of a model, one after another, the best of five times."""
    weights = [weight for weight in model.parameters() if weight.nbytes >= 2**20]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for weight in weights:
            weight.sum()
        seconds.append(time.perf_counter() - started)
    return sum(weight.nbytes for weight in weights) / min(seconds)


def _stepper(workload: Workload, backend: Any) -> Callable[[int], object]:
    compiled = torch.compile(workload.model, backend=backend)

    def run(step: int) -> object:
        with torch.no_grad():
            return compiled(**workload.inputs(step))

    return run
