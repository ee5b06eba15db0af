"""Seconds until the first result: ours, which compiles two graphs, against plain torch.compile; every cache cold."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch._inductor.utils import fresh_cache

from benchmarks.workloads import Workload, dit_xl2, flux_narrow, tiny_dit
from taylorseer_fx import TaylorSeerBackend, taylorseer_backend

CASES = {"DiT-XL/2": (dit_xl2, 2), "FLUX.1-dev": (flux_narrow, 1)}


@pytest.mark.parametrize("name", CASES)
def test_compile_seconds(benchmark: BenchmarkFixture, name: str) -> None:
    """Alternates plain and ours, the median pair in ``extra_info``; and what the passes take of ours."""
    build, rounds = CASES[name]
    first_call_seconds(tiny_dit, "inductor")  # imports, precompiled headers and worker processes are nobody's compile time
    plain: list[float] = []
    ours: list[float] = []
    passes: list[float] = []

    def compile_both() -> None:
        backend = taylorseer_backend(order=2)
        plain.append(first_call_seconds(build, "inductor"))
        ours.append(first_call_seconds(build, backend))
        passes.append(_pass_seconds(backend))

    benchmark.pedantic(compile_both, rounds=rounds)
    benchmark.extra_info.update(
        workload=build().name,
        plain_seconds=statistics.median(plain),
        ours_seconds=statistics.median(ours),
        ours_over_plain=statistics.median(a / b for a, b in zip(ours, plain, strict=True)),
        passes_over_ours=statistics.median(a / b for a, b in zip(passes, ours, strict=True)),
    )


def first_call_seconds(build: Callable[[], Workload], backend: Any) -> float:
    workload = build()
    torch.compiler.reset()
    with fresh_cache(), torch.no_grad():
        compiled = torch.compile(workload.model, backend=backend)
        started = time.perf_counter()
        compiled(**workload.inputs(0))
        return time.perf_counter() - started


def _pass_seconds(backend: TaylorSeerBackend) -> float:
    return sum(stage.duration_ms for stage in backend.explain().stages) / 1e3
