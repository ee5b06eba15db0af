"""Products of two to four rows with a transposed weight are written the other way round, and give the same in the same layout."""

import pytest
import torch

from taylorseer_fx.passes.few_rows import put_weights_left
from tests.graphs import hand_made, nodes_without_value, op_counts

aten = torch.ops.aten


def linear(emit, rows, weight, *bias):
    product = aten.addmm.default if bias else aten.mm.default
    return [emit(product, *bias, rows, emit(aten.permute.default, weight, [1, 0]))]


def graph(num_rows: int, *, bias: bool, build=linear):
    shapes = [(num_rows, 6), (8, 6), *([(8,)] if bias else [])]
    return hand_made(build, *shapes), [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 8])
def test_same_values_in_the_same_layout(num_rows, bias):
    """Rewritten for few rows only; a view of the result is possible as before."""
    gm, inputs = graph(num_rows, bias=bias)
    (expected,) = gm(*inputs)
    rewritten = put_weights_left(gm)
    (result,) = rewritten(*inputs)
    torch.testing.assert_close(result, expected)
    assert result.stride() == expected.stride()
    is_rewritten = 2 <= num_rows <= 4
    assert op_counts(rewritten)["permute"] == (3 if is_rewritten else 1)
    assert op_counts(rewritten)["addmm"] == (bias and not is_rewritten)
    assert nodes_without_value(rewritten) == []


def plain(emit, rows, weight):
    return [emit(aten.mm.default, weight, emit(aten.permute.default, rows, [1, 0]))]


def scaled(emit, rows, weight, bias):
    return [emit(aten.addmm.default, bias, rows, emit(aten.permute.default, weight, [1, 0]), beta=0.5)]


def by_column(emit, rows, weight):
    """Permuted into the order it has: what is permuted lies column by column and has no transpose to take."""
    return [emit(aten.mm.default, rows, emit(aten.permute.default, emit(aten.permute.default, weight, [1, 0]), [0, 1]))]


@pytest.mark.parametrize(("build", "bias"), [(plain, False), (scaled, True), (by_column, False)])
def test_left_alone(build, bias):
    """A weight that is on the left already, a product with factors, and a permutation that transposes nothing."""
    gm, _ = graph(3, bias=bias, build=build)
    before = op_counts(gm)
    assert op_counts(put_weights_left(gm)) == before
