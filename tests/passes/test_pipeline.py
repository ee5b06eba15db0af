"""The passes in a row: what they record, how a failure is told, and what holds after every one of them."""

import gc
import logging
import logging.handlers
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from taylorseer_fx.errors import PassError
from taylorseer_fx.passes import lower, pipeline, runner
from taylorseer_fx.passes.lower import TARGETS
from taylorseer_fx.passes.pipeline import PassResult, run_passes
from taylorseer_fx.passes.runner import count_ops
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Selection, Storage
from taylorseer_fx.passes.verify import nodes_without_value
from tests.graphs import left_as_it_is, render, trace, two_layers

STAGES = [
    "trace",
    "canonicalize",
    "find_regions",
    "find_stored",
    "guard_regions",
    "specialize_full",
    "clean_up_full",
    "specialize_forecast",
    "narrow_forecast",
    "clean_up_forecast",
    "sum_few_rows_forecast",
    "fold_repeats_forecast",
]
TWO_BUFFERS, MODULES = Storage(1), Selection()


def passes(storage: Storage = TWO_BUFFERS, selection: Selection = MODULES, dtype: torch.dtype = torch.float32) -> PassResult:
    model, args = two_layers(dtype)
    traced = trace(model, *args)
    return run_passes(traced.gm, traced.static_inputs, storage, selection, target=TARGETS["cpu"])


class TestResult:
    def test_stages_are_recorded_in_order(self):
        """One record a pass, with the op count of the graph it made."""
        result = passes()
        assert [stage.name for stage in result.stages] == STAGES
        assert all(stage.duration_ms >= 0 for stage in result.stages)
        by_name = {stage.name: stage.num_ops for stage in result.stages}
        assert by_name["trace"] == by_name["canonicalize"] == count_ops(result.canonical.graph)
        assert by_name["guard_regions"] == count_ops(result.guarded.gm.graph)
        for kind in StepKind:
            assert by_name[f"clean_up_{kind.value}"] == count_ops(result.variants[kind].gm.graph)

    def test_input_graph_is_left_as_it_is(self):
        model, args = two_layers()
        traced = trace(model, *args)
        with left_as_it_is(traced.gm):
            run_passes(traced.gm, traced.static_inputs, Storage(2))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("buffer_dtype", [None, torch.float16, torch.float8_e4m3fn])
    @pytest.mark.parametrize("granularity", ["module", "stack"])
    def test_every_node_has_its_value_in_every_graph(self, dtype, buffer_dtype, granularity):
        """``meta["val"]`` is what the next pass and Inductor go by."""
        result = passes(Storage(2, buffer_dtype), Selection(granularity), dtype)
        steps = [steps[kind].gm for steps in (result.variants, result.lowered) for kind in StepKind]
        for gm in (result.canonical, result.guarded.gm, *steps):
            assert nodes_without_value(gm) == []

    def test_one_variant_a_step_kind(self):
        assert set(passes().variants) == set(StepKind)

    def test_same_result_twice(self):
        """Passes hold no state: the same graph gives the same graphs."""
        first, second = passes(), passes()
        assert render(first.guarded.gm) == render(second.guarded.gm)
        for kind in StepKind:
            assert render(first.variants[kind].gm) == render(second.variants[kind].gm)

    def test_nothing_to_forecast(self):
        """No regions: the passes stop there, and say so by leaving the later graphs out."""
        traced = trace(nn.Linear(4, 4), torch.randn(3, 4))
        result = run_passes(traced.gm, traced.static_inputs, Storage(1))
        assert result.guarded is None
        assert result.variants == {}
        assert result.found.regions == ()
        assert [stage.name for stage in result.stages] == STAGES[:4]


NEEDED = 2 * 2 * 3 * 4 * 4  # bytes: two buffers of two features of 3 x 4 floats


class TestSelection:
    """What is taken for a feature, and what a budget makes of it."""

    def test_stack(self):
        result = passes(selection=Selection("stack"))
        assert (result.granularity, result.module_bytes) == ("stack", None)
        assert [stage.name for stage in result.stages] == [*STAGES[:2], "find_stack", *STAGES[3:]]
        assert [region.kind.value for region in result.found.regions] == ["stack"]

    @pytest.mark.parametrize("budget", [None, NEEDED, NEEDED + 1])
    def test_modules_within_the_budget(self, budget):
        result = passes(selection=Selection("module", budget))
        assert (result.granularity, result.module_bytes) == ("module", NEEDED)
        assert [stage.name for stage in result.stages] == STAGES

    @pytest.mark.parametrize("budget", [1, NEEDED - 1])
    def test_stack_beyond_it(self, budget):
        """The modules were looked for, and their bytes are told all the same."""
        result = passes(selection=Selection("module", budget))
        assert (result.granularity, result.module_bytes) == ("stack", NEEDED)
        assert [stage.name for stage in result.stages] == [*STAGES[:4], "find_stack", *STAGES[3:]]
        assert render(result.guarded.gm) == render(passes(selection=Selection("stack")).guarded.gm)

    def test_the_dtype_of_the_buffers_counts(self):
        half = passes(Storage(1, torch.float16), Selection("module", NEEDED // 2))
        assert (half.granularity, half.module_bytes) == ("module", NEEDED // 2)
        eighth = passes(Storage(1, torch.float8_e5m2))
        assert eighth.module_bytes == 2 * 3 * 4 * (4 + 1)


class TestFailure:
    @pytest.mark.parametrize(
        ("name", "before"),
        [
            ("canonicalize", STAGES[:1]),
            ("find_regions", STAGES[:2]),
            ("find_stored", STAGES[:3]),
            ("guard_regions", STAGES[:4]),
            ("specialize", STAGES[:5]),
            ("clean_up", STAGES[:6]),
            ("narrow", STAGES[:8]),
            ("sum_few_rows", STAGES[:10]),
            ("fold_repeats", STAGES[:11]),
        ],
    )
    def test_names_the_pass_and_those_before_it(self, monkeypatch, name, before):
        """The error says which pass failed, why, and what ran before; the cause is chained."""
        cause = ValueError("no such luck")

        def fail(*_args):
            raise cause

        monkeypatch.setattr(lower if hasattr(lower, name) else pipeline, name, fail)
        with pytest.raises(PassError) as raised:
            passes()
        failed = STAGES[len(before)]
        assert failed.startswith(name)
        assert f"{failed!r} failed: no such luck" in str(raised.value)
        assert f"before it: {', '.join(before)})" in str(raised.value)
        assert raised.value.__cause__ is cause

    def test_interrupts_are_not_swallowed(self, monkeypatch):
        def interrupt(*_args):
            raise KeyboardInterrupt

        monkeypatch.setattr(pipeline, "guard_regions", interrupt)
        with pytest.raises(KeyboardInterrupt):
            passes()


class TestGarbageCollection:
    """Off while the passes run; afterwards as it was, whatever happened."""

    @pytest.fixture(autouse=True)
    def as_before(self) -> Iterator[None]:
        was_enabled = gc.isenabled()
        yield
        (gc.enable if was_enabled else gc.disable)()

    @pytest.mark.parametrize("was_enabled", [True, False])
    def test_is_off_meanwhile(self, monkeypatch, was_enabled):
        seen = []

        def look(*args):
            seen.append(gc.isenabled())
            return guard_regions(*args)

        guard_regions = pipeline.guard_regions
        monkeypatch.setattr(pipeline, "guard_regions", look)
        (gc.enable if was_enabled else gc.disable)()
        passes()
        assert seen == [False]
        assert gc.isenabled() is was_enabled

    def test_is_on_after_a_failure(self, monkeypatch):
        monkeypatch.setattr(pipeline, "guard_regions", lambda *_: 1 / 0)
        gc.enable()
        with pytest.raises(PassError):
            passes()
        assert gc.isenabled()


class TestLogging:
    def test_debug_log_has_a_line_a_pass(self):
        """TORCH_LOGS="+taylorseer_fx" sets this level."""
        messages = self.logged(logging.DEBUG)
        assert len(messages) == len(STAGES)
        assert messages[4].startswith("5 guard_regions: 12 ops (+6 getitem, +2 cond, -2 mm, -2 permute), ")

    def test_silent_otherwise(self):
        assert self.logged(logging.INFO) == []

    @pytest.mark.parametrize("shown", ["guard_regions", "all"])
    def test_graphs_on_request(self, monkeypatch, capsys, shown):
        monkeypatch.setenv("TAYLORSEER_FX_GRAPHS", shown)
        passes()
        printed = capsys.readouterr().err
        assert "torch.ops.higher_order.cond" in printed
        assert printed.count("# ") >= (len(STAGES) if shown == "all" else 1)
        assert ("# narrow_forecast\n" in printed) == (shown == "all")

    def logged(self, level: int) -> list[str]:
        """What the passes log when their logger is at ``level``."""
        handler = logging.handlers.BufferingHandler(1000)
        before = runner.log.level
        runner.log.addHandler(handler)
        runner.log.setLevel(level)
        try:
            passes()
        finally:
            runner.log.removeHandler(handler)
            runner.log.setLevel(before)
        return [record.getMessage() for record in handler.buffer]
