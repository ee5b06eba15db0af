"""Products of few rows with a small weight are written as sums: the same values, in the same layout and dtype."""

import pytest
import torch
from expecttest import TestCase

from taylorseer_fx.passes import sum_small_weights as module
from taylorseer_fx.passes.sum_small_weights import sum_small_weights
from taylorseer_fx.passes.verify import nodes_without_value
from tests.graphs import left_as_it_is, op_counts, render
from tests.passes.test_sum_few_rows import graph, plain, scaled

aten = torch.ops.aten


class TestSnapshot(TestCase):
    maxDiff = None

    def test_two_rows_in_half_precision(self):
        self.assertExpectedInline(
            render(sum_small_weights(graph(2, bias=True, dtype=torch.bfloat16)[0])),
            """\
%x0 : bfloat16[2, 6]
%x1 : bfloat16[8, 6]
%x2 : bfloat16[8]
%convert_element_type = convert_element_type(%x1, float32) : float32[8, 6]
%convert_element_type1 = convert_element_type(%x0, float32) : float32[2, 6]
%unsqueeze = unsqueeze(%convert_element_type, 1) : float32[8, 1, 6]
%unsqueeze1 = unsqueeze(%convert_element_type1, 0) : float32[1, 2, 6]
%mul = mul(%unsqueeze, %unsqueeze1) : float32[8, 2, 6]
%sum = sum(%mul, [-1]) : float32[8, 2]
%permute = permute(%sum, [1, 0]) : float32[2, 8]
%clone = clone(%permute, memory_format=contiguous_format) : float32[2, 8]
%add = add(%clone, %x2) : float32[2, 8]
%convert_element_type2 = convert_element_type(%add, bfloat16) : bfloat16[2, 8]
return (%convert_element_type2)""",
        )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 4, 5])
def test_same_values_in_the_same_layout(num_rows, bias):
    gm, inputs = graph(num_rows, bias=bias)
    (expected,) = gm(*inputs)
    with left_as_it_is(gm):
        rewritten = sum_small_weights(gm)
    (result,) = rewritten(*inputs)
    torch.testing.assert_close(result, expected)
    assert result.stride() == expected.stride()
    assert op_counts(rewritten)["sum"] == (1 <= num_rows <= 4)
    assert nodes_without_value(rewritten) == []


def test_a_large_weight_is_left_alone(monkeypatch):
    """Reading it takes longer than a launch."""
    gm, _ = graph(2, bias=True)
    monkeypatch.setattr(module, "LAUNCH_BYTES", 8 * 6 * 4 - 1)
    assert op_counts(sum_small_weights(gm)) == op_counts(gm)


@pytest.mark.parametrize(("build", "bias"), [(plain, False), (scaled, True)])
def test_left_alone(build, bias):
    gm, _ = graph(3, bias=bias, build=build)
    assert op_counts(sum_small_weights(gm)) == op_counts(gm)
