"""Folding the predicate: one graph a step kind, doing to the letter what that side of the guarded graph does."""

import pytest
import torch
from expecttest import TestCase
from torch import Tensor, nn

from taylorseer_fx.passes.guard_regions import GuardedGraph, guard_regions
from taylorseer_fx.passes.specialize import specialize
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.passes.verify import nodes_without_value
from tests.graphs import Traced, assert_ops_changed, left_as_it_is, op_counts, pass_inputs, render, trace
from tests.graphs import two_layers as two
from tests.passes.test_guard_regions import CASES, STORAGES, call, guarded_case, random_state, same


def guarded_graph(
    model: nn.Module, args: tuple[Tensor, ...], order: int = 1, dtype: torch.dtype | None = None
) -> tuple[Traced, GuardedGraph]:
    traced = trace(model, *args)
    return traced, guard_regions(*pass_inputs(traced), Storage(order, dtype))


class TestSnapshots(TestCase):
    maxDiff = None

    def test_full(self):
        """Regions inlined; the new snapshots written over the oldest, at the end. The others are not touched."""
        _, guarded = guarded_graph(*two())
        self.assertExpectedInline(
            render(specialize(guarded, StepKind.FULL)),
            """\
%arg0_1 : float32[4, 4]
%arg1_1 : float32[3, 4]
%arg2_1 : float32[4]
%arg3_1 : float32[4, 4]
%coefficients : float32[2]
%feature0_b0 : float32[3, 4]
%feature1_b0 : float32[3, 4]
%feature0_b1 : float32[3, 4]
%feature1_b1 : float32[3, 4]
%permute = permute(%arg0_1, [1, 0]) : float32[4, 4]
%mm = mm(%arg1_1, %permute) : float32[3, 4]
%mul = mul(%arg2_1, %mm) : float32[3, 4]
%add = add(%arg1_1, %mul) : float32[3, 4]
%permute1 = permute(%arg3_1, [1, 0]) : float32[4, 4]
%mm1 = mm(%add, %permute1) : float32[3, 4]
%mul1 = mul(%arg2_1, %mm1) : float32[3, 4]
%add1 = add(%add, %mul1) : float32[3, 4]
%copy_ = copy_(%feature0_b1, %mm) : float32[3, 4]
%copy_1 = copy_(%feature1_b1, %mm1) : float32[3, 4]
return (%add1)""",
        )

    def test_forecast(self):
        """Polynomials inlined; nothing is written."""
        _, guarded = guarded_graph(*two())
        self.assertExpectedInline(
            render(specialize(guarded, StepKind.FORECAST)),
            """\
%arg0_1 : float32[4, 4]
%arg1_1 : float32[3, 4]
%arg2_1 : float32[4]
%arg3_1 : float32[4, 4]
%coefficients : float32[2]
%feature0_b0 : float32[3, 4]
%feature1_b0 : float32[3, 4]
%feature0_b1 : float32[3, 4]
%feature1_b1 : float32[3, 4]
%select = select(%coefficients, 0, 0) : float32[]
%mul = mul(%feature0_b0, %select) : float32[3, 4]
%select1 = select(%coefficients, 0, 1) : float32[]
%mul1 = mul(%feature0_b1, %select1) : float32[3, 4]
%add = add(%mul, %mul1) : float32[3, 4]
%mul2 = mul(%arg2_1, %add) : float32[3, 4]
%add1 = add(%arg1_1, %mul2) : float32[3, 4]
%select2 = select(%coefficients, 0, 0) : float32[]
%mul3 = mul(%feature1_b0, %select2) : float32[3, 4]
%select3 = select(%coefficients, 0, 1) : float32[]
%mul4 = mul(%feature1_b1, %select3) : float32[3, 4]
%add2 = add(%mul3, %mul4) : float32[3, 4]
%mul5 = mul(%arg2_1, %add2) : float32[3, 4]
%add3 = add(%add1, %mul5) : float32[3, 4]
return (%add3)""",
        )


class TestApplied:
    def test_what_full_removes_and_adds(self):
        _, guarded = guarded_graph(*two())
        full = specialize(guarded, StepKind.FULL)
        added = {"mm": 2, "permute": 2, "copy_": 2}
        assert_ops_changed(guarded.gm, full, removed={"cond": 2, "getitem": 6}, added=added)

    def test_what_forecast_removes_and_adds(self):
        _, guarded = guarded_graph(*two())
        forecast = specialize(guarded, StepKind.FORECAST)
        assert_ops_changed(guarded.gm, forecast, removed={"cond": 2, "getitem": 6}, added={"select": 4, "mul": 4, "add": 2})

    @pytest.mark.parametrize("kind", StepKind)
    def test_input_graph_is_left_as_it_is(self, kind):
        _, guarded = guarded_graph(*two())
        with left_as_it_is(guarded.gm):
            specialize(guarded, kind)

    @pytest.mark.parametrize("kind", StepKind)
    def test_inputs_are_the_guarded_ones_less_the_predicate(self, kind):
        _, guarded = guarded_graph(*two())
        names = [node.name for node in specialize(guarded, kind).graph.find_nodes(op="placeholder")]
        assert names == [node.name for node in guarded.placeholders if node is not guarded.is_full]

    @pytest.mark.parametrize("kind", StepKind)
    @pytest.mark.parametrize("order", [0, 1, 4])
    def test_every_node_has_its_value(self, kind, order):
        _, guarded = guarded_graph(*two(torch.bfloat16), order=order)
        assert nodes_without_value(specialize(guarded, kind)) == []

    @pytest.mark.parametrize("order", range(5))
    @pytest.mark.parametrize("dtype", [None, torch.float8_e5m2])
    def test_writes(self, order, dtype):
        """A full step writes the oldest snapshot of each feature, or every difference, and last; a forecast step writes none."""
        _, guarded = guarded_graph(*two(), order=order, dtype=dtype)
        full = specialize(guarded, StepKind.FULL).graph
        writes = [node for node in full.nodes if node.name.startswith("copy_")]
        written = range(order + 1) if dtype is not None else [order]
        assert [node.args[0].name for node in writes] == [f"feature{f}_b{i}" for i in written for f in range(2)]
        assert list(full.nodes)[-len(writes) - 1 : -1] == writes
        assert "copy_" not in op_counts(specialize(guarded, StepKind.FORECAST))

    @pytest.mark.parametrize("kind", StepKind)
    def test_same_graph_every_time(self, kind):
        _, guarded = guarded_graph(*two())
        assert render(specialize(guarded, kind)) == render(specialize(guarded, kind))


@pytest.mark.parametrize("kind", StepKind)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("storage", [Storage(0), *STORAGES], ids=lambda storage: f"{storage.order}-{storage.dtype}")
def test_does_what_the_guarded_graph_does(kind, case, storage):
    """Same outputs and same buffers, bit for bit, for chained, joint and shared features and constants inside a region; what is
    the newest snapshot in the guarded graph is in the oldest one's place.
    """
    traced, guarded = guarded_case(case, storage)
    state = random_state(guarded)
    expected, new = call(guarded, traced.real_inputs, kind is StepKind.FULL, *state)
    own = [tensor.clone() for tensor in state]
    with torch.no_grad():
        results = specialize(guarded, kind)(*traced.real_inputs, *own)
    assert same(results, expected)
    if kind is StepKind.FULL and not storage.keeps_differences:
        num_features = len(new) // (storage.order + 1)
        new = [*new[num_features:], *new[:num_features]]
    assert same(own[len(guarded.coefficients) :], new)
