"""Seconds until the first result in a new process, with what earlier ones left in the caches on disk, and without."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

ROOT = Path(__file__).parents[1]
WORKLOAD = "dit_xl2"
ROUNDS = 3


def test_warm_start_seconds(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Each with a cache of its own; the ratio of each warm pair is in ``extra_info``."""
    cold = {which: first_call_seconds(which, tmp_path) for which in ("plain", "ours")}
    warm: dict[str, list[float]] = {"plain": [], "ours": []}

    def start_both() -> None:
        for which, seconds in warm.items():
            seconds.append(first_call_seconds(which, tmp_path))

    benchmark.pedantic(start_both, rounds=ROUNDS)
    benchmark.extra_info.update(
        workload="DiT-XL/2",
        plain_cold_seconds=cold["plain"],
        ours_cold_seconds=cold["ours"],
        plain_warm_seconds=statistics.median(warm["plain"]),
        ours_warm_seconds=statistics.median(warm["ours"]),
        warm_ours_over_plain=statistics.median(a / b for a, b in zip(warm["ours"], warm["plain"], strict=True)),
    )


def first_call_seconds(which: str, directory: Path) -> float:
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(directory / which), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "benchmarks.first_call", which, WORKLOAD]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | caches | {"PYTHONPATH": path}, check=True, capture_output=True)
    return float(done.stdout.split()[-1])
