"""Removing what specialising left unread: nodes, collectives, inputs."""

import torch
import torch.distributed._functional_collectives
from expecttest import TestCase
from torch import fx, nn

from taylorseer_fx.passes.clean_up import clean_up
from taylorseer_fx.passes.guard_regions import guard_regions
from taylorseer_fx.passes.specialize import specialize
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.passes.verify import nodes_without_value
from tests.graphs import assert_ops_changed, hand_made, left_as_it_is, op_counts, pass_inputs, render, trace, two_layers
from tests.passes.test_guard_regions import CASES, guarded_case, random_state, same

aten = torch.ops.aten


def specialized(kind: StepKind, model: nn.Module, args: tuple[torch.Tensor, ...], order: int = 1) -> fx.GraphModule:
    return specialize(guard_regions(*pass_inputs(trace(model, *args)), Storage(order)), kind)


class TestSnapshots(TestCase):
    maxDiff = None

    def test_forecast(self):
        """No product is left, no weight is taken, and both layers share the weights of the polynomial."""
        variant = clean_up(specialized(StepKind.FORECAST, *two_layers()))
        self.assertExpectedInline(
            render(variant.gm) + f"\ninputs: {variant.input_positions}",
            """\
%arg1_1 : float32[3, 4]
%arg2_1 : float32[4]
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
%mul3 = mul(%feature1_b0, %select) : float32[3, 4]
%mul4 = mul(%feature1_b1, %select1) : float32[3, 4]
%add2 = add(%mul3, %mul4) : float32[3, 4]
%mul5 = mul(%arg2_1, %add2) : float32[3, 4]
%add3 = add(%add1, %mul5) : float32[3, 4]
return (%add3)
inputs: (1, 2, 4, 5, 6, 7, 8)""",
        )

    def test_full(self):
        """Neither the polynomial's weights are taken nor the snapshots that stay as they are."""
        variant = clean_up(specialized(StepKind.FULL, *two_layers()))
        self.assertExpectedInline(
            render(variant.gm) + f"\ninputs: {variant.input_positions}",
            """\
%arg0_1 : float32[4, 4]
%arg1_1 : float32[3, 4]
%arg2_1 : float32[4]
%arg3_1 : float32[4, 4]
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
return (%add1)
inputs: (0, 1, 2, 3, 7, 8)""",
        )


def all_reduce(emit, x):
    """A tensor-parallel sum, as DTensor leaves it in a graph; its values are written by hand, so no process group is needed."""
    graph = x.graph
    reduced = graph.call_function(torch.ops._c10d_functional.all_reduce.default, (x, "sum", "0"))
    reduced.meta["val"] = x.meta["val"]
    done = graph.call_function(torch.ops._c10d_functional.wait_tensor.default, (reduced,))
    done.meta["val"] = x.meta["val"]
    return done


class TestApplied:
    def test_dead_code_goes(self):
        gm = hand_made(lambda emit, x: (emit(aten.mul.Tensor, emit(aten.exp.default, x), 2), emit(aten.sin.default, x))[1:], (3,))
        assert_ops_changed(gm, clean_up(gm).gm, removed={"exp": 1, "mul": 1})

    def test_equal_expressions_are_written_once(self):
        gm = hand_made(lambda emit, x: (emit(aten.add.Tensor, emit(aten.exp.default, x), emit(aten.exp.default, x)),), (3,))
        assert_ops_changed(gm, clean_up(gm).gm, removed={"exp": 1})

    def test_dead_collectives_go(self):
        """FX takes them for impure; a forecast step that communicates for nothing is a slow one."""
        gm = hand_made(
            lambda emit, x, y: (all_reduce(emit, emit(aten.exp.default, x)), emit(aten.sin.default, y))[1:], (3,), (3,)
        )
        variant = clean_up(gm)
        assert_ops_changed(gm, variant.gm, removed={"all_reduce": 1, "wait_tensor": 1, "exp": 1})
        assert variant.input_positions == (1,)

    def test_live_collectives_stay(self):
        gm = hand_made(lambda emit, x: (all_reduce(emit, x),), (3,))
        assert_ops_changed(gm, clean_up(gm).gm)

    def test_writes_stay(self):
        """A write to an input is read by nobody in the graph, and is what a full step is for."""
        gm = hand_made(lambda emit, x, buffer: (emit(aten.copy_.default, buffer, emit(aten.exp.default, x)), x)[1:], (3,), (3,))
        variant = clean_up(gm)
        assert_ops_changed(gm, variant.gm)
        assert variant.input_positions == (0, 1)

    def test_unread_inputs_are_dropped(self):
        """``kept`` tells which positions remain, in order."""
        gm = hand_made(lambda emit, a, b, c, d: (emit(aten.sub.Tensor, d, b),), *[(3,)] * 4)
        variant = clean_up(gm)
        assert variant.input_positions == (1, 3)
        assert [node.name for node in variant.gm.graph.find_nodes(op="placeholder")] == ["x1", "x3"]

    def test_input_that_is_returned_is_kept(self):
        gm = hand_made(lambda emit, a, b: (b,), (3,), (3,))
        assert clean_up(gm).input_positions == (1,)

    def test_input_graph_is_left_as_it_is(self):
        for kind in StepKind:
            gm = specialized(kind, *two_layers())
            with left_as_it_is(gm):
                clean_up(gm)

    def test_left_alone_where_nothing_is_dead(self):
        gm = hand_made(lambda emit, x: (emit(aten.exp.default, x),), (3,))
        variant = clean_up(gm)
        assert render(variant.gm) == render(gm)
        assert variant.input_positions == (0,)

    def test_idempotent(self):
        for kind in StepKind:
            once = clean_up(specialized(kind, *two_layers()))
            twice = clean_up(once.gm)
            assert render(twice.gm) == render(once.gm)
            assert twice.input_positions == tuple(range(len(once.input_positions)))

    def test_every_node_has_its_value(self):
        for kind in StepKind:
            assert nodes_without_value(clean_up(specialized(kind, *two_layers(torch.bfloat16))).gm) == []


class TestNumerics:
    def test_same_results_and_same_writes(self):
        """Cleaning up changes no number, for any of the graph shapes and step kinds."""
        for case in CASES:
            traced, guarded = guarded_case(case, Storage(2))
            for kind in StepKind:
                gm = specialize(guarded, kind)
                variant = clean_up(gm)
                state, own = random_state(guarded), random_state(guarded)
                everything = (*traced.real_inputs, *own)
                with torch.no_grad():
                    expected = gm(*traced.real_inputs, *state)
                    results = variant.gm(*[everything[i] for i in variant.input_positions])
                assert same(results, expected)
                assert same(own, state)

    def test_forecast_does_nothing_heavy(self):
        for case in CASES:
            _, guarded = guarded_case(case, Storage(1))
            counts = op_counts(clean_up(specialize(guarded, StepKind.FORECAST)).gm)
            assert not counts.keys() & {"mm", "addmm", "bmm", "softmax", "_softmax"}
