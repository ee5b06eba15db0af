"""The form that the region finder reads: no dead code, equal expressions written once, inputs untouched."""

import torch
from expecttest import TestCase

from taylorseer_fx.passes.canonicalize import canonicalize
from taylorseer_fx.passes.verify import nodes_without_value
from tests.graphs import assert_ops_changed, hand_made, left_as_it_is, render, trace, two_layers

aten, prims = torch.ops.aten, torch.ops.prims


def casts(emit, x):
    """The stream behind a fresh cast a use."""
    first, second = (emit(prims.convert_element_type.default, x, torch.float32) for _ in range(2))
    emit(aten.mul.Tensor, x, 2)
    return [emit(aten.add.Tensor, first, emit(aten.exp.default, second))]


class TestSnapshots(TestCase):
    maxDiff = None

    def test_casts_are_merged_and_dead_code_goes(self):
        gm = canonicalize(hand_made(casts, (3,), dtype=torch.bfloat16))
        self.assertExpectedInline(
            render(gm),
            """\
%x0 : bfloat16[3]
%convert_element_type = convert_element_type(%x0, float32) : float32[3]
%exp = exp(%convert_element_type) : float32[3]
%add = add(%convert_element_type, %exp) : float32[3]
return (%add)""",
        )


class TestApplied:
    def test_counts(self):
        gm = hand_made(casts, (3,), dtype=torch.bfloat16)
        assert_ops_changed(gm, canonicalize(gm), removed={"convert_element_type": 1, "mul": 1})

    def test_chains_merge_to_the_end(self):
        """What reads two merged nodes alike is merged in turn."""

        def build(emit, x):
            left, right = (emit(aten.sin.default, emit(aten.exp.default, x)) for _ in range(2))
            return [emit(aten.mul.Tensor, left, right)]

        gm = hand_made(build, (3,))
        assert_ops_changed(gm, canonicalize(gm), removed={"exp": 1, "sin": 1})

    def test_several_users_all_read_the_one(self):
        def build(emit, x):
            return [emit(aten.mul.Tensor, emit(aten.exp.default, x), i) for i in range(3)]

        gm = canonicalize(hand_made(build, (3,)))
        (exp,) = [node for node in gm.graph.nodes if node.name.startswith("exp")]
        assert len(exp.users) == 3

    def test_different_expressions_stay(self):
        def build(emit, x):
            return [emit(aten.mul.Tensor, x, 2), emit(aten.mul.Tensor, x, 3), emit(aten.add.Tensor, x, 2)]

        gm = hand_made(build, (3,))
        assert_ops_changed(gm, canonicalize(gm))

    def test_random_numbers_are_not_merged(self):
        """Two draws are two draws."""
        gm = hand_made(
            lambda emit, x: [emit(aten.add.Tensor, emit(aten.rand_like.default, x), emit(aten.rand_like.default, x))], (3,)
        )
        assert_ops_changed(gm, canonicalize(gm))

    def test_inputs_keep_number_and_order(self):
        """Even those that nobody reads: a position means the same input in every graph."""
        gm = hand_made(lambda emit, a, b, c: [emit(aten.exp.default, b)], (1,), (2,), (3,))
        shapes = [tuple(node.meta["val"].shape) for node in canonicalize(gm).graph.find_nodes(op="placeholder")]
        assert shapes == [(1,), (2,), (3,)]

    def test_left_alone(self):
        model, args = two_layers()
        gm = trace(model, *args).gm
        assert render(canonicalize(gm)) == render(gm)

    def test_input_graph_is_left_as_it_is(self):
        gm = hand_made(casts, (3,), dtype=torch.bfloat16)
        with left_as_it_is(gm):
            canonicalize(gm)

    def test_idempotent(self):
        once = canonicalize(hand_made(casts, (3,), dtype=torch.bfloat16))
        assert render(canonicalize(once)) == render(once)

    def test_every_node_has_its_value(self):
        assert nodes_without_value(canonicalize(hand_made(casts, (3,), dtype=torch.bfloat16))) == []

    def test_numerics(self):
        gm = hand_made(casts, (3,), dtype=torch.bfloat16)
        x = torch.randn(3, dtype=torch.bfloat16)
        assert torch.equal(gm(x)[0], canonicalize(gm)(x)[0])
