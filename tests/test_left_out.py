"""In the last resort: a pass that fails and that a graph is right without is left out, and said to be; any other ends it."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from taylorseer_fx import TaylorSeerWarning, plan, taylorseer_backend
from taylorseer_fx.cache import StepCode, arriving
from taylorseer_fx.compile import make_eager
from taylorseer_fx.errors import PassError
from taylorseer_fx.passes import find_stack as find_stack_module
from taylorseer_fx.passes import find_stored as find_stored_module
from taylorseer_fx.passes import lower, pipeline, window_rules
from taylorseer_fx.passes.find_stack import find_stack
from taylorseer_fx.passes.find_stored import find_stored
from taylorseer_fx.passes.lower import TARGETS
from taylorseer_fx.passes.ops import aten
from taylorseer_fx.passes.pipeline import run_passes
from taylorseer_fx.passes.steps import OPTIONAL
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.passes.window_rules import Rule
from taylorseer_fx.remade import StoredPasses
from taylorseer_fx.traced import GraphOrigin
from tests.composition.session import Session, tiny_zoo
from tests.graphs import Found, Traced, find, find_stacks, render, trace, two_layers
from tests.passes.test_find_stored import D, Ending, Flux
from tests.passes.test_find_stored import inputs as flux_inputs
from tests.zoo import tiny, tiny_inputs

PASSES = {
    "find_stored": "find_stored",
    "narrow": "narrow_forecast",
    "sum_few_rows": "sum_few_rows_forecast",
    "fold_repeats": "fold_repeats_forecast",
}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def lowered(monkeypatch):
    """Graphs that are run uncompiled are lowered, too, to have all passes."""
    monkeypatch.setattr("taylorseer_fx.traced.AS_IT_IS", TARGETS["cpu"])


def fail(*_args: Any) -> Any:
    raise ValueError("no such luck")


def let_fail(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(lower if hasattr(lower, name) else pipeline, name, fail)


def said_by(function: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        function()
    return [str(warning.message) for warning in said if warning.category is TaylorSeerWarning]


def traced_layers() -> Traced:
    model, args = two_layers()
    return trace(model, *args)


class TestOptional:
    @pytest.mark.parametrize("name", PASSES)
    def test_is_left_out_and_said_to_be(self, monkeypatch, name):
        """The outputs are those of the reference, there is one warning, and ``explain()`` tells the same."""
        let_fail(monkeypatch, name)
        session = Session.of(tiny_zoo())
        (message,) = said_by(session.check)
        stage = PASSES[name]
        assert f"the pass {stage!r} failed and was left out: {OPTIONAL[name]}" in message
        assert "ValueError: no such luck (in test_left_out.py:" in message
        assert f"torch {torch.__version__}" in message
        report = session.backend.explain()
        assert [(entry.name, entry.left_out) for entry in report.stages if entry.left_out] == [
            (stage, "ValueError: no such luck")
        ]
        assert f"left out: {stage} (ValueError: no such luck)" in str(report)

    def test_all_at_once_under_the_other_granularity(self, monkeypatch):
        """Each is told by itself, once a backend, however many graphs it compiles."""
        for name in PASSES:
            let_fail(monkeypatch, name)
        backend = taylorseer_backend(compiler="eager", granularity="stack")
        model = tiny()
        compiled = torch.compile(model, backend=backend, dynamic=False)

        def two_shapes() -> None:
            for length in (6, 7):
                torch.testing.assert_close(compiled(**tiny_inputs(0, length=length)), model(**tiny_inputs(0, length=length)))

        assert len(said_by(two_shapes)) == len(PASSES)
        assert len([stage for stage in backend.explain().stages if stage.left_out]) == len(PASSES)

    def test_a_rule_that_fails(self, monkeypatch):
        """Whatever asks it is left out; ``explain()`` counts bytes as if all were read, and says so."""
        monkeypatch.setitem(window_rules._RULES, aten.mm, Rule(fail, fail))
        monkeypatch.setitem(window_rules._RULES, aten.addmm, Rule(fail, fail))
        session = Session.of(tiny_zoo())
        messages = said_by(session.check)
        assert [message.split("'")[1] for message in messages] == ["find_stored", "narrow_forecast"]
        (full, forecast) = said_by(lambda: session.backend.explain())
        assert "explain() reports more bytes than the full step moves" in full
        assert "than the forecast step moves" in forecast

    def test_branches_at_a_break(self, monkeypatch):
        """They are only listed, so a failure there costs a list."""
        monkeypatch.setattr(pipeline, "find_leaving_branches", fail)
        told: list[str] = []
        traced = traced_layers()
        args = (traced.gm, traced.static_inputs, Storage(1))
        result = run_passes(*args, graph_break="somewhere", notify=lambda topic, _: told.append(topic))
        assert told == ["left out find_cut_branches"]
        assert not result.is_complete
        assert result.found.regions

    def test_plan_says_it_too(self, monkeypatch):
        let_fail(monkeypatch, "narrow")
        with pytest.warns(TaylorSeerWarning, match="'narrow_forecast' failed and was left out"):
            planned = plan(tiny(), tiny_inputs(0))
        assert planned.flops_forecast < planned.flops_full


class TestDisabled:
    """What is switched off is not run; results are right without it, nothing is warned of, and ``explain()`` lists it."""

    @pytest.mark.parametrize("name", PASSES)
    def test_one(self, monkeypatch, name):
        let_fail(monkeypatch, name)  # were it run
        session = Session.of(tiny_zoo(), disabled_passes=[name])
        assert said_by(session.check) == []
        report = session.backend.explain()
        left_out = [entry.name for entry in report.stages if entry.left_out]
        assert left_out == [PASSES[name]]
        assert f"left out: {PASSES[name]} (it is in disabled_passes)" in str(report)

    def test_all(self):
        session = Session.of(tiny_zoo(), disabled_passes=OPTIONAL)
        assert said_by(session.check) == []
        forecast = session.backend.explain().flops["forecast"]
        with_all = Session.of(tiny_zoo())
        with_all.check()
        assert forecast >= with_all.backend.explain().flops["forecast"]


class TestStrict:
    """A failure that nobody would hear of is none that may be passed over."""

    @pytest.mark.parametrize("name", PASSES)
    def test_nobody_to_tell(self, monkeypatch, name):
        let_fail(monkeypatch, name)
        traced = traced_layers()
        with pytest.raises(PassError, match=f"{PASSES[name]!r} failed: no such luck"):
            run_passes(traced.gm, traced.static_inputs, Storage(1), target=TARGETS["cpu"])

    def test_the_warning_is_an_error_in_these_tests(self, monkeypatch):
        """So a pass that fails in any of them fails it."""
        let_fail(monkeypatch, "narrow")
        compiled = torch.compile(tiny(), backend=taylorseer_backend(compiler="eager"))
        with pytest.raises(Exception, match="'narrow_forecast' failed and was left out"):
            compiled(**tiny_inputs(0))

    @pytest.mark.parametrize("name", ["canonicalize", "find_regions", "guard_regions", "specialize", "clean_up", "sort_inputs"])
    def test_required(self, monkeypatch, name):
        """Without these there is nothing to run: the error names the pass, whoever listens."""
        let_fail(monkeypatch, name)
        traced = traced_layers()
        with pytest.raises(PassError, match=f"taylorseer_fx pass '{name}.* failed: no such luck"):
            run_passes(traced.gm, traced.static_inputs, Storage(1), notify=fail)

    def test_is_not_stored(self, monkeypatch):
        """A process that loads the graph would not hear of it; asked later, the report says it all the same."""
        assert isinstance(self.compiled().steps.passes, StoredPasses)
        let_fail(monkeypatch, "narrow")
        assert not isinstance(self.compiled().steps.passes, StoredPasses)
        traced = traced_layers()
        stored = StoredPasses.of(traced.gm, {"static_inputs": traced.static_inputs, "storage": Storage(1)})
        assert [stage.name for stage in stored.run().stages if stage.left_out] == ["narrow_forecast"]

    def compiled(self) -> StepCode:
        traced = traced_layers()
        backend = taylorseer_backend()
        codes: list[StepCode] = []

        def compile_layers() -> None:
            args = (GraphOrigin(None, is_part=False), "tag", traced.gm, traced.fake_inputs, traced.static_inputs, make_eager)
            codes.append(backend._compile_traced(*args))

        with arriving("tag"):
            said_by(compile_layers)
        return codes[0]


class TestUnharmed:
    """A pass that adds nodes to its graph and fails on the way has added none."""

    def test_find_stored(self, monkeypatch):
        """Here after a part of a base was added."""
        found = find_stacks(Ending(), torch.randn(5, D))
        self.check(monkeypatch, found, find_stored_module, "region_border", lambda: find_stored(found.gm.graph, found.regions))

    def test_find_stack(self, monkeypatch):
        """Here after its entries were added."""
        found = find(Flux(), *flux_inputs())
        self.check(monkeypatch, found, find_stack_module, "positions_of", lambda: find_stack(found.gm.graph, ()))

    def check(self, monkeypatch, found: Found, module: Any, failing: str, run: Callable[[], Any]) -> None:
        """The pass calls ``failing`` when it has added nodes already."""
        before, nodes = render(found.gm), list(found.gm.graph.nodes)
        lengths: list[int] = []

        def look(*_args: Any) -> None:
            lengths.append(len(found.gm.graph.nodes))
            fail()

        monkeypatch.setattr(module, failing, look)
        with pytest.raises(ValueError, match="no such luck"):
            run()
        assert lengths[0] > len(nodes)
        assert list(found.gm.graph.nodes) == nodes
        assert render(found.gm) == before
