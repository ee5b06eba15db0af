"""The comparison under pytest-benchmark: the harness' digits workload and its methods; each row is in ``extra_info``."""

from dataclasses import asdict

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from taylorseer_fx.bench.measure import Bench, MeasureSettings
from taylorseer_fx.bench.methods.diffusers_caches import diffusers_full_steps
from taylorseer_fx.bench.running import Case, Method
from taylorseer_fx.bench.suite import few_methods
from taylorseer_fx.bench.workloads import digits


@pytest.fixture(scope="module")
def bench() -> Bench:
    workload = digits()
    return Bench(Case(workload, workload.build(), diffusers_full_steps(workload.num_steps)), MeasureSettings(rounds=3))


@pytest.mark.parametrize("method", few_methods(), ids=lambda method: method.name)
def test_comparison(benchmark: BenchmarkFixture, bench: Bench, method: Method) -> None:
    """Measured as ``taylorseer-fx bench`` does."""
    row = benchmark.pedantic(bench.measure, (method,), rounds=1)
    benchmark.extra_info.update(asdict(row))
    assert row.status == "ok", row.reason
