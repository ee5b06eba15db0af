"""Every diffusion transformer of diffusers: regions found, full steps exact, forecasts right, state right, nothing recompiles.

Both granularities: the stack from the same trace, beside the modules. Every class is run in one week of six, each of its further
variants in one of eighteen, and all of them with ``pytest --all-variants``.
"""

import inspect
import re
import warnings
from contextlib import nullcontext
from typing import Any

import diffusers.models.transformers
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from taylorseer_fx import TaylorSeerBackend
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.passes import fold_repeats
from taylorseer_fx.passes.lower import TARGETS
from taylorseer_fx.passes.ops import FUSED_ATTENTION, packet
from taylorseer_fx.passes.pipeline import PassResult, run_passes
from tests.graphs import nodes_without_origin
from tests.models import EXCLUDED, VARIANTS
from tests.models.both import BothBackend, Call
from tests.models.table import documented_row, row_of
from tests.models.variant import Inputs, Variant
from tests.turns import in_turns

NUM_STEPS = 10
FULL_STEPS = tuple(range(0, NUM_STEPS, 2))  # every forecast step has one more order than the one before, up to 4
MAX_FORECAST_SHARE = 0.05


def test_every_exported_model_is_here():
    """A new diffusers that brings another transformer fails this, so it cannot slip past."""
    exported = {
        name
        for name, item in vars(diffusers.models.transformers).items()
        if inspect.isclass(item) and issubclass(item, nn.Module)
    }
    assert {variant.class_name for variant in VARIANTS.values()} | EXCLUDED.keys() == exported


FIRST = list({variant.class_name: name for name, variant in reversed(VARIANTS.items())}.values())  # one of each class
OTHERS = [name for name in VARIANTS if name not in FIRST]


def tensors(output: Any) -> list[Tensor]:
    return [leaf.clone() for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.fixture
def results(monkeypatch) -> list[tuple[set[str], PassResult]]:
    """What the passes make of every graph, with the operators that torch traced without saying where they come from."""
    made: list[tuple[set[str], PassResult]] = []

    def kept(traced: torch.fx.GraphModule, **kwargs: Any) -> PassResult:
        arguments = {**kwargs, "target": TARGETS["cpu"]}  # for an uncompiled graph there is none
        made.append(({op_of(name) for name in nodes_without_origin(traced)}, run_passes(traced, **arguments)))
        return made[-1][1]

    monkeypatch.setattr("taylorseer_fx.traced.run_passes", kept)
    return made


def prepare(variant: Variant) -> tuple[nn.Module, BothBackend, Any]:
    model = variant.build()
    backend = BothBackend(BackendConfig(order=4, full_steps=FULL_STEPS, compiler="eager", on_no_regions="warn"))
    return model, backend, torch.compile(model, backend=backend, fullgraph=variant.fullgraph)


def generate(backend: TaylorSeerBackend, compiled: Any, variant: Variant) -> tuple[list[list[Tensor]], list[bool]]:
    """A generation, its steps told by the timestep alone where the model has one: the outputs, and which steps were forecast."""
    outputs, forecast = [], []
    for step in range(NUM_STEPS):
        before = backend.stats()
        with backend.stream("generation", step=step) if variant.untimed else nullcontext():
            outputs.append(tensors(compiled(**variant.inputs(step, 0))))
        after = backend.stats()
        forecast.append(after.forecast_calls > before.forecast_calls)
        assert forecast[-1] != (after.full_calls > before.full_calls)
    return outputs, forecast


@pytest.mark.parametrize("name", [*in_turns(FIRST, weeks=12), *in_turns(OTHERS, weeks=36)])
def test_model(name, monkeypatch, results):
    monkeypatch.setattr(fold_repeats, "FEWEST_CALLS", 2)  # three blocks; the first is a link of its own
    monkeypatch.setattr(fold_repeats, "COST_OF_A_CALL", 1)
    variant = VARIANTS[name]
    constant = variant.inputs(7, 1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, backend, compiled = prepare(variant)
        eager, eager_constant = (
            [tensors(model(**variant.inputs(step, 0))) for step in range(NUM_STEPS)],
            tensors(model(**constant)),
        )
        first, forecast = generate(backend, compiled, variant)
        first_calls = backend.take_calls()
        with torch.compiler.set_stance("fail_on_recompile"):
            assert_equal(generate(backend, compiled, variant)[0], first)
            assert_stack(first_calls, backend.take_calls())
            assert_forecast_exactly(backend, compiled, constant, eager_constant)
            assert_stack_exact(backend.take_calls())
    assert_scheduled(forecast, variant, backend)
    assert_full_steps_exact(first, eager, forecast)
    assert_origins(results)
    assert_documented(variant, backend)
    if not variant.broken:
        assert_covered(backend, variant)


def assert_equal(actual: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def assert_scheduled(forecast: list[bool], variant: Variant, backend: BothBackend) -> None:
    """As the schedule says; but step 1 is executed where the timestep rises, since it could be the first of a new generation, and
    where of several inputs that may be the time the first stands still, since what moved could alternate.
    """
    expected = [step not in FULL_STEPS for step in range(NUM_STEPS)]
    assert forecast in (expected, [False, False, *expected[2:]])
    assert forecast == expected or variant.ascending or 0 not in backend.explain().time_taken


def assert_full_steps_exact(outputs: list[list[Tensor]], eager: list[list[Tensor]], forecast: list[bool]) -> None:
    for output, expected, was_forecast in zip(outputs, eager, forecast, strict=True):
        if was_forecast:
            assert not all(
                torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max())) for a, b in zip(output, expected, strict=True)
            )
        else:
            assert_close(output, expected)


def assert_forecast_exactly(backend: TaylorSeerBackend, compiled: Any, inputs: Inputs, eager: list[Tensor]) -> None:
    """Where nothing changes all differences are zero, so that a forecast is what a full step gives, at every order."""
    for step in range(NUM_STEPS):
        with backend.stream("constant", step=step):
            assert_close(tensors(compiled(**inputs)), eager)


def assert_stack(first: list[Call], second: list[Call]) -> None:
    """Full steps are the same at either granularity, forecast steps are not all; the second generation is the first."""
    for call in first:
        if call.was_full:
            for a, b in zip(call.stack, call.modules, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()), equal_nan=True)
    assert_equal([call.stack for call in second], [call.stack for call in first])
    assert any(not call.was_full for call in first)
    assert any(not torch.equal(a, b) for call in first for a, b in zip(call.stack, call.modules, strict=True))


def assert_stack_exact(calls: list[Call]) -> None:
    """Where nothing changes the stack forecasts exactly, too."""
    for call in calls:
        assert_close(call.stack, call.modules)


def assert_origins(results: list[tuple[set[str], PassResult]]) -> None:
    """Every node of every graph says which line of the model it stands for, if the traced one did: torch's checks of sizes that
    only the data tell stand for none.
    """
    for nowhere, result in results:
        steps = [*result.variants.values(), *result.lowered.values()]
        graphs = [result.canonical, *(step.gm for step in steps), *([result.guarded.gm] if result.guarded else [])]
        for gm in graphs:
            assert {op_of(name) for name in nodes_without_origin(gm)} <= nowhere


def op_of(name: str) -> str:
    return re.sub(r"(_?\d+)+$", "", name)


def assert_documented(variant: Variant, backend: BothBackend) -> None:
    """The row in docs/models.md says the same; but how many graphs a broken model falls into, and so how often each reason is
    given and what share is left, depends on what ran before.
    """
    row, documented = row_of(variant, backend).split(" | "), (documented_row(variant.name) or "").split(" | ")
    if variant.broken:
        del row[1], documented[1:2]
        row, documented = ([re.sub(r"\d+: ", "", cell) for cell in cells[:-2]] for cells in (row, documented))
    assert row == documented, "run `python -m tests.models.table`"


def assert_covered(backend: BothBackend, variant: Variant) -> None:
    report, stack = backend.explain(), backend.stack.explain()
    assert backend.stats().graphs == 1
    attention = [node for node in report.graph("forecast").graph.nodes if packet(node) in FUSED_ATTENTION]
    assert bool(attention) == bool(variant.attends)
    for explained in (report, stack):
        assert explained.flops["forecast"] <= MAX_FORECAST_SHARE * explained.flops["full"], f"{explained}"
    assert {region.kind for region in stack.regions} == {"stack"}
