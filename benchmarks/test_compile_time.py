"""Seconds until the first result: ours, which compiles two graphs, against plain torch.compile; every cache cold."""

import statistics
import time
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch._inductor.utils import fresh_cache

from benchmarks.workloads import dit_s2
from taylorseer_fx import taylorseer_backend

ROUNDS = 2


def test_compile_seconds(benchmark: BenchmarkFixture) -> None:
    """Alternates plain and ours; the ratio of each pair is in ``extra_info``."""
    first_call_seconds("inductor")  # imports, precompiled headers and worker processes are nobody's compile time
    plain: list[float] = []
    ours: list[float] = []

    def compile_both() -> None:
        plain.append(first_call_seconds("inductor"))
        ours.append(first_call_seconds(taylorseer_backend(order=2)))

    benchmark.pedantic(compile_both, rounds=ROUNDS)
    benchmark.extra_info.update(
        workload="DiT-S/2",
        plain_seconds=statistics.median(plain),
        ours_seconds=statistics.median(ours),
        ours_over_plain=statistics.median(a / b for a, b in zip(ours, plain, strict=True)),
    )


def first_call_seconds(backend: Any) -> float:
    workload = dit_s2()
    torch.compiler.reset()
    with fresh_cache(), torch.no_grad():
        compiled = torch.compile(workload.model, backend=backend)
        started = time.perf_counter()
        compiled(**workload.inputs(0))
        return time.perf_counter() - started
