"""What Inductor generates for an H100: launches, bytes, copies and registers of every graph. Generated for sm_90, not run.

Few blocks of the published widths: what holds of a block holds of each. Whole models are in docs/cuda_codegen.md.
"""

from functools import cache

import pytest
import torch
from expecttest import TestCase

pytest.importorskip("triton", reason="needs triton to compile kernels: pip install taylorseer-fx[cuda-codegen]")

from benchmarks.cuda_codegen.measure import GRANULARITIES, Code, ours, plain
from benchmarks.cuda_codegen.subjects import DIT, FLUX
from benchmarks.cuda_codegen.tracing import trace
from taylorseer_fx.passes.lower import TARGETS

pytestmark = [
    pytest.mark.inductor,
    pytest.mark.skipif(not torch.__version__.startswith("2.13"), reason="the figures are those of torch 2.13's Inductor"),
]
DEPTHS = {FLUX: (2, 2), DIT: (4,)}


@cache
def codes(subject) -> dict[str, Code]:
    traced = trace(*subject.on_meta(DEPTHS[subject]))
    made = [plain(traced)]
    for granularity in GRANULARITIES:
        made += ours(traced, granularity, TARGETS["cuda"])
    return {code.graph: code for code in made}


def lines(subject) -> str:
    """A line a graph."""
    return "\n".join(
        f"{name}: {code.generated.launches.total()} Triton + {code.generated.library.total()} library, "
        f"{code.generated.num_bytes / 1e6:.0f} MB of {code.floor / 1e6:.0f}, copies {len(code.generated.copies)}"
        for name, code in codes(subject).items()
    )


class TestSnapshot(TestCase):
    maxDiff = None

    def test_flux(self):
        self.assertExpectedInline(
            lines(FLUX),
            """\
plain: 47 Triton + 54 library, 7199 MB of 2059, copies 0
forecast, module: 6 Triton + 12 library, 771 MB of 670, copies 0
full, module: 46 Triton + 51 library, 7347 MB of 2210, copies 0
forecast, stack: 6 Triton + 6 library, 280 MB of 180, copies 0
full, stack: 49 Triton + 51 library, 7365 MB of 2084, copies 0""",
        )

    def test_dit(self):
        self.assertExpectedInline(
            lines(DIT),
            """\
plain: 33 Triton + 45 library, 399 MB of 210, copies 0
forecast, module: 7 Triton + 2 library, 74 MB of 69, copies 0
full, module: 24 Triton + 34 library, 404 MB of 220, copies 0
forecast, stack: 7 Triton + 2 library, 18 MB of 13, copies 0
full, stack: 24 Triton + 34 library, 398 MB of 211, copies 0""",
        )


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("subject", DEPTHS, ids=lambda subject: subject.name)
def test_registers(subject, granularity):
    """No kernel of ours spills any in any of its configurations, and a quarter of a multiprocessor's warps fit beside each other
    in a forecast step.
    """
    forecast, full = (codes(subject)[f"{kind}, {granularity}"] for kind in ("forecast", "full"))
    assert forecast.spilling == full.spilling == []
    assert forecast.min_occupancy >= 0.25


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("subject", DEPTHS, ids=lambda subject: subject.name)
def test_full_steps(subject, granularity):
    """No more launches than without us, and no kernel that only copies a feature."""
    code = codes(subject)[f"full, {granularity}"]
    assert code.generated.num_launches <= codes(subject)["plain"].generated.num_launches
    assert code.generated.copies == ()


def test_a_spill_is_seen():
    """All polynomials of a model in one kernel, as Inductor would have it."""
    from taylorseer_fx.passes.lower import AS_IT_IS

    forecast = next(ours(trace(*DIT.on_meta((4,))), "module", AS_IT_IS))
    assert len(forecast.spilling) == 1
    assert "layer_norm" in forecast.spilling[0]
