"""What is compiled is what ``explain()`` shows, and is lowered for the device at hand only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import fx
from torch._inductor.utils import fresh_cache
from torch._subclasses.fake_tensor import FakeTensorMode

from taylorseer_fx import compile as compiling
from taylorseer_fx import taylorseer_backend
from taylorseer_fx.compile import make_eager, target_for
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.passes.lower import AS_IT_IS, TARGETS
from taylorseer_fx.passes.pipeline import run_passes
from taylorseer_fx.passes.runner import count_ops
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from tests.graphs import render, trace
from tests.zoo import tiny, tiny_inputs

LOWERED = {"sum_few_rows_forecast", "fold_repeats_forecast"}


@contextmanager
def compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What Inductor is given, as text, before it works in it."""
    given: list[str] = []

    def look(gm: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        given.append(render(gm))
        return compile_fx_inner(gm, inputs, **kwargs)

    compile_fx_inner = compiling.compile_fx_inner
    with monkeypatch.context() as patch, fresh_cache():
        patch.setattr(compiling, "compile_fx_inner", look)
        yield given


@pytest.mark.inductor
def test_lowered_graphs_are_the_compiled_ones(monkeypatch):
    """Node by node, whether the numbers of the report were just counted or it makes the graphs again."""
    backend = taylorseer_backend()
    with compiled_graphs(monkeypatch) as given, torch.no_grad():
        torch.compile(tiny(), backend=backend)(**tiny_inputs(0))
    report = backend.explain()
    forecast, full = (report.graph(kind, lowered=True) for kind in ("forecast", "full"))
    assert given == [render(forecast), render(full)]
    assert report.num_lowered_ops == {"forecast": count_ops(forecast.graph), "full": count_ops(full.graph)}
    assert render(report.graph("forecast")) != render(forecast)
    assert report.target == "cpu"
    assert f"{report.num_ops['forecast']} ops ({report.num_lowered_ops['forecast']} as compiled for cpu)" in str(report)
    assert {stage.name for stage in report.stages} >= LOWERED


@pytest.mark.inductor
def test_without_regions(monkeypatch):
    """The graph as it was traced is what is compiled, and shown."""
    backend = taylorseer_backend(on_no_regions="warn")
    model = torch.nn.Linear(4, 4)
    with compiled_graphs(monkeypatch) as given, torch.no_grad(), pytest.warns(match="no attention or MLP"):
        torch.compile(model, backend=backend)(torch.ones(3, 4))
    assert given == [render(backend.explain().graph("full", lowered=True))]


def test_uncompiled_graphs_are_not_lowered():
    """``compiler="eager"`` is for finding out which pass is at fault, so it runs what is the same on every device."""
    backend = taylorseer_backend(compiler="eager")
    with torch.no_grad():
        torch.compile(tiny(), backend=backend)(**tiny_inputs(0))
    report = backend.explain()
    assert not LOWERED & {stage.name for stage in report.stages}
    assert report.num_lowered_ops == report.num_ops
    assert "as compiled" not in str(report)
    for kind in ("forecast", "full"):
        assert render(report.graph(kind, lowered=True)) == render(report.graph(kind))
    with pytest.raises(ConfigError, match="name must be 'full' or 'forecast', got 'guarded'"):
        report.graph("guarded", lowered=True)


def test_targets():
    cpu, meta = torch.empty(1), torch.empty(1, device="meta")
    assert target_for([cpu, 3]) == TARGETS["cpu"]
    assert target_for([meta]) == target_for([cpu, meta]) == target_for([3]) == AS_IT_IS
    assert TARGETS["cpu"].of(StepKind.FULL) == AS_IT_IS.of(StepKind.FORECAST)


def test_a_gpu():
    with FakeTensorMode():
        assert target_for([torch.empty(1, device="cuda"), 3]) == TARGETS["cuda"]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("kind", StepKind)
def test_same_values_on_every_target(target, kind):
    """Lowered graphs give what the graphs of the step kinds give, and leave the same in the buffers."""
    with torch.no_grad():
        traced = trace(tiny(), **tiny_inputs(0))
        result = run_passes(traced.gm, traced.static_inputs, Storage(1), target=target)
        before, after = result.variants[kind], result.lowered[kind]
        extra = [node.meta["val"] for node in (*result.guarded.coefficients, *result.guarded.buffers)]
        every_input = [*traced.real_inputs, *(torch.randn(value.shape, dtype=value.dtype) for value in extra)]
        results = []
        for variant in (before, after):
            inputs = [every_input[i] for i in variant.input_positions]
            inputs = [value.clone() if isinstance(value, torch.Tensor) else value for value in inputs]
            results.append((make_eager(variant.gm, inputs, ())([*inputs]), inputs))
    torch.testing.assert_close(results[1], results[0], equal_nan=True)


def test_less_one_rewrite():
    lean = TARGETS["cpu"].without("fold_repeats")
    assert lean.forecast.rewrites == ("sum_few_rows",)
    assert lean.forecast.settings == TARGETS["cpu"].forecast.settings
