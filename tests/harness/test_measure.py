"""The harness cannot flatter us: the same list of full steps, counted; outputs checked; baselines always there; whoever left
nothing out is marked and not compared; whatever fails says why, and the others go on.
"""

import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial

import pytest
import torch
from torch import nn

from taylorseer_fx.bench.measure import Bench, MeasureSettings
from taylorseer_fx.bench.methods.cache_dit import CacheDit
from taylorseer_fx.bench.methods.diffusers_caches import FirstBlockCache, MagCache, TaylorSeerCache, diffusers_full_steps
from taylorseer_fx.bench.methods.official import OfficialHooks
from taylorseer_fx.bench.methods.ours import Ours
from taylorseer_fx.bench.methods.plain import FewerSteps, Plain
from taylorseer_fx.bench.methods.sea_cache import SeaCache
from taylorseer_fx.bench.observing import with_peak_bytes
from taylorseer_fx.bench.running import Case, Runner
from taylorseer_fx.bench.suite import CHOICES, PLAIN, entries, every_method, main_methods, run_workload
from taylorseer_fx.bench.tables import cells
from taylorseer_fx.bench.verdict import verdict
from taylorseer_fx.bench.workloads import PipelineWorkload, fashion, tiny_pipelines
from taylorseer_fx.runtime.placement import place
from tests.harness.test_reports import RESULT
from tests.turns import in_turns

pytestmark = pytest.mark.usefixtures("little_garbage")
NUM_STEPS = 11
SCHEDULE = (0, 1, 2, 4, 9)
WORKLOADS = {workload.name: replace(workload, num_steps=NUM_STEPS) for workload in tiny_pipelines()}
ours = partial(Ours, compiler="eager")


def bench_of(workload: PipelineWorkload) -> Bench:
    """Nothing is compiled: time is not what is tested."""
    case = Case(workload, workload.build(), diffusers_full_steps(workload.num_steps))
    return Bench(case, MeasureSettings(rounds=1), compile_baseline=False)


class Rows:
    """A bench, and the rows that it measured: each is measured once."""

    def __init__(self, name: str) -> None:
        self.bench = bench_of(WORKLOADS[name])
        self.case = self.bench.case
        self.measure = cache(self.bench.measure)


@pytest.fixture(scope="module")
def dit() -> Rows:
    return Rows("tiny DiTPipeline")


@pytest.fixture(scope="module")
def flux() -> Rows:
    return Rows("tiny FluxPipeline")


def test_schedule_is_that_of_diffusers():
    """``TaylorSeerCacheConfig``'s defaults: METHOD's table."""
    assert diffusers_full_steps(50) == (0, 1, 2, 4, 9, 14, 19, 24, 29, 34, 39, 44, 49)


@pytest.mark.parametrize(
    "method", in_turns([ours(1), ours(0, "stack"), OfficialHooks(1), TaylorSeerCache("named", compiled=False)], weeks=4)
)
def test_same_full_steps(dit, method):
    """Counted, not claimed: all that can be given the list execute just that."""
    row = dit.measure(method)
    assert (row.status, row.full_steps, row.num_steps) == ("ok", SCHEDULE, NUM_STEPS)
    assert 1.5 < row.ceiling <= NUM_STEPS / len(SCHEDULE) * 1.01  # a model so small leaves little out
    assert row.repeatable


def test_same_recursion_same_result(dit):
    """Ours, the hooks and diffusers', whose factors are bfloat16, end at the same latents."""
    errors = [dit.measure(method).relative_l2 for method in (ours(1), OfficialHooks(1), TaylorSeerCache("named", compiled=False))]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
    assert errors[0] == pytest.approx(errors[2], rel=0.1)
    assert errors[0] > 1e-4


@pytest.mark.turn(0, 2)
def test_serial_guidance():
    """Two calls a step are one step, of two streams."""
    row = bench_of(WORKLOADS["tiny WanPipeline"]).measure(ours(1))
    assert (row.status, row.full_steps) == ("ok", SCHEDULE)
    assert len(row.trajectory_error) == NUM_STEPS + 1


def test_cached_nothing(dit):
    """diffusers' default pattern names no module of a DiT: marked, and no speed-up told."""
    row = dit.measure(TaylorSeerCache("default", compiled=False))
    assert row.status == "cached nothing"
    assert row.full_steps == tuple(range(NUM_STEPS))
    assert not row.counts
    header, (idle,) = cells(replace(RESULT, rows=(row,)))
    assert idle[0] == "diffusers TaylorSeer default, eager (cached nothing)"
    assert idle[header.index("speed-up (min-max)")] == "-"


@pytest.mark.turn(1, 2)
def test_part_of_the_work(flux):
    """Attention alone, FLUX's default: steps that leave less out are told by their share."""
    row = flux.measure(TaylorSeerCache("default", compiled=False))
    assert (row.status, row.full_steps) == ("ok", SCHEDULE)
    assert 0.2 < row.light_step_flops_share < 1
    assert row.ceiling < flux.measure(TaylorSeerCache("named", compiled=False)).ceiling


@pytest.mark.parametrize("method", in_turns([FirstBlockCache(compiled=False), MagCache(compiled=False)], weeks=2))
def test_thresholds_are_tuned(dit, method):
    """To about as many full steps as the schedule has, and those are counted."""
    row = dit.measure(method)
    assert row.status == "ok"
    assert abs(len(row.full_steps) - len(SCHEDULE)) <= 2


@pytest.mark.turn(0, 2)
def test_sea_cache():
    """It is told step and noise level in the pipeline's place; without a flow it says why it does nothing."""
    row = bench_of(fashion(num_images=1, num_steps=NUM_STEPS)).measure(SeaCache(compiled=False))
    assert row.status == "ok"
    assert abs(len(row.full_steps) - len(SCHEDULE)) <= 2
    assert row.psnr_db > 20
    assert bench_of(WORKLOADS["tiny DiTPipeline"]).measure(SeaCache(compiled=False)).reason.startswith("NoNoiseLevelError")


@pytest.mark.parametrize(
    ("setting", "steps"), [({"interval": 3}, (0, 1, 2, 5, 8)), ({"speedup": 3.0}, tuple(place(NUM_STEPS, 4)))], ids=str
)
def test_ours_by_other_schedules(dit, setting, steps):
    """Counted as all others are; a verdict at equal full steps leaves them out."""
    row = dit.measure(ours(1, **setting))
    assert (row.status, row.full_steps) == ("ok", steps)
    assert verdict([row], SCHEDULE) == "No row of ours counts, so there is nothing to compare."


def test_threshold_that_never_holds(dit):
    assert dit.measure(FirstBlockCache(compiled=False, threshold=0.0)).status == "cached nothing"


def test_fewer_steps(dit):
    row = dit.measure(FewerSteps(compiled=False))
    assert (row.num_steps, len(row.full_steps)) == (len(SCHEDULE), len(SCHEDULE))
    assert row.ceiling == pytest.approx(NUM_STEPS / len(SCHEDULE))
    assert row.trajectory_error == ()


def test_missing_peer(dit, monkeypatch):
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    row = dit.bench.measure(CacheDit(compiled=False))
    assert row.status == "not installed"
    assert 'pip install "taylorseer-fx[peers]"' in row.reason


@dataclass(frozen=True)
class Broken:
    """Fails in some way."""

    how: str
    family = "broken"
    compiled = True
    caches = True
    note = ""

    @property
    def name(self) -> str:
        return f"broken, {self.how}"

    @property
    def counted_as(self) -> OfficialHooks:
        return OfficialHooks(1)

    def prepare(self, case: Case) -> Runner:
        if self.how == "raises":
            raise RuntimeError("no such block\nand more")
        runner = Runner(case, case.pipeline(), case.num_steps)
        if self.how == "not finite":
            runner.pipe.transformer.register_forward_hook(lambda *_: _filled(_[-1], torch.nan))
        return runner


def _filled(output: object, value: float) -> object:
    output.sample.fill_(value)
    return output


def test_failures_are_rows(dit):
    row = dit.measure(Broken("raises"))
    assert (row.status, row.reason) == ("failed", "RuntimeError: no such block")
    assert dit.measure(Broken("not finite")).reason.startswith("the result is not finite")


def test_results_are_checked(dit, monkeypatch):
    """A method whose compiled run is another one than the run that was counted does not count."""
    monkeypatch.setattr("taylorseer_fx.bench.measure.AGREES_WITHIN", 1e-6)  # this model hardly moves in so few steps
    row = dit.bench.measure(Broken("runs every step, says otherwise"))
    assert row.status == "failed"
    assert "off the eager one" in row.reason


def test_baselines_are_always_there():
    with pytest.raises(ValueError, match=r"methods must include the baselines, missing: torch\.compile"):
        run_workload(WORKLOADS["tiny DiTPipeline"], [Plain(compiled=False), ours(1)], MeasureSettings(1))
    for entry in entries().values():
        for choice in CHOICES:
            assert set(PLAIN) <= set(entry.methods(choice))


def test_every_method_is_there():
    names = [method.name for method in every_method()]
    assert len(set(names)) == len(names)
    assert {f"ours, {name}, order {order}" for name in ("module", "stack") for order in range(5)} <= set(names)
    assert {method.name for method in main_methods()} <= set(names)


def test_full_run_must_be_good():
    """A run in full that is not finite is nothing to measure against."""
    workload = WORKLOADS["tiny DiTPipeline"]

    def broken() -> nn.Module:
        pipe = workload.build()
        pipe.transformer.proj_out_2.weight.fill_(torch.inf)
        return pipe

    with pytest.raises(ValueError, match="the run in full is not finite"):
        bench_of(replace(workload, build=broken))


def test_weights_are_shared_and_the_original_untouched(dit):
    """Hooks of one method are not there in the next, and weights are not copied."""
    case = dit.case
    before = case.original.transformer.forward
    first = OfficialHooks(1).prepare(case).pipe
    assert case.original.transformer.forward == before
    assert type(first) is not type(case.original)
    for mine, original in zip(first.transformer.parameters(), case.original.transformer.parameters(), strict=True):
        assert mine is original


def test_kept_bytes(dit):
    """Buffers of order 1: two blocks of two features, batch 2, 16 tokens, width 16, twice; the hooks keep as much."""
    expected = 2 * 4 * 2 * 16 * 16 * 4
    for method in (ours(1), OfficialHooks(1)):
        assert dit.measure(method).held_bytes == pytest.approx(expected, rel=0.2)


def test_peak_bytes(dit):
    """Every allocation counts, beside what the method kept from the run before: in full, an MLP's hidden state at the least."""
    assert with_peak_bytes(lambda: (torch.ones(1000) + 1).sum())[1] == pytest.approx(2 * 4000, abs=100)
    full, mine, hooks = (dit.measure(method) for method in (Plain(compiled=False), ours(1), OfficialHooks(1)))
    assert full.peak_bytes > 2 * 16 * 4 * 16 * 4
    for row in (mine, hooks):  # what was kept is neither forgotten because it was there before, nor counted twice
        assert 0.7 < (row.peak_bytes - full.peak_bytes) / row.held_bytes < 1.7


@dataclass(frozen=True)
class Keeping(Plain):
    """Keeps a mebibyte in a ring that only the garbage collector ends."""

    compiled: bool = True

    def prepare(self, case: Case) -> Runner:
        runner = Plain(compiled=False).prepare(case)
        ring: list[object] = [torch.zeros(2**18)]
        ring.append(ring)
        runner.context = lambda: nullcontext(ring)
        return runner


def test_kept_bytes_of_one_start(dit):
    """What the first of two starts kept isn't counted for the second."""
    bench = Bench(dit.case, MeasureSettings(rounds=1, warm_start=True), compile_baseline=False)
    row = bench.measure(Keeping())
    assert row.warm_start_seconds is not None
    assert row.held_bytes == pytest.approx(2**20, rel=0.01)


def test_verdict_names_who_is_faster(dit):
    """And leaves out who cached nothing, or executed other steps."""
    mine = replace(dit.measure(ours(1)), speedup=3.0, psnr_db=40.0)
    peer = replace(mine, method="peer", family="peer", speedup=3.5, psnr_db=20.0)
    idle = replace(peer, method="idle", status="cached nothing", speedup=9.0)
    elsewhere = replace(peer, method="elsewhere", full_steps=(0, 5), speedup=8.0)
    fewer = replace(peer, method="fewer", family="fewer steps", num_steps=5, full_steps=(0, 1, 2, 3, 4), speedup=4.0)
    text = verdict([mine, peer, idle, elsewhere, fewer], SCHEDULE)
    assert "not ours (ours, module, order 1, 3.00x at 40.0 dB) but peer, 3.50x at 20.0 dB" in text
    assert "Cached nothing, so not compared: idle" in text
    assert "(fewer) is 4.00x" in text
    assert "As fast or faster at other full steps: elsewhere, 2 of them, 8.00x at 20.0 dB." in text
    assert verdict([mine, replace(peer, speedup=2.0)], SCHEDULE).startswith("At the same 5 full steps the fastest row is ours")
