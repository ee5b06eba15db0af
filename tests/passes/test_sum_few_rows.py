"""Products of one to four rows with a transposed weight are written as sums: the same values, in the same layout and dtype."""

import pytest
import torch
from expecttest import TestCase
from torch._inductor.utils import run_and_get_cpp_code

from taylorseer_fx.passes.sum_few_rows import sum_few_rows
from taylorseer_fx.passes.verify import nodes_without_value
from tests.graphs import hand_made, left_as_it_is, op_counts, render

aten = torch.ops.aten


def linear(emit, rows, weight, *bias):
    product = aten.addmm.default if bias else aten.mm.default
    return [emit(product, *bias, rows, emit(aten.permute.default, weight, [1, 0]))]


def graph(num_rows: int, *, bias: bool, build=linear, dtype: torch.dtype = torch.float32, length: int = 6):
    shapes = [(num_rows, length), (8, length), *([(8,)] if bias else [])]
    return hand_made(build, *shapes, dtype=dtype), [torch.randn(shape).to(dtype) for shape in shapes]


class TestSnapshot(TestCase):
    maxDiff = None

    def test_two_rows_in_half_precision(self):
        """Multiplied and added in float32; the rows are written out before."""
        self.assertExpectedInline(
            render(sum_few_rows(graph(2, bias=True, dtype=torch.bfloat16)[0])),
            """\
%x0 : bfloat16[2, 6]
%x1 : bfloat16[8, 6]
%x2 : bfloat16[8]
%convert_element_type = convert_element_type(%x1, float32) : float32[8, 6]
%inductor_force_stride_order = inductor_force_stride_order(%x0, [6, 1]) : bfloat16[2, 6]
%convert_element_type1 = convert_element_type(%inductor_force_stride_order, float32) : float32[2, 6]
%select = select(%convert_element_type1, 0, 0) : float32[6]
%mul = mul(%convert_element_type, %select) : float32[8, 6]
%select1 = select(%convert_element_type1, 0, 1) : float32[6]
%mul1 = mul(%convert_element_type, %select1) : float32[8, 6]
%sum = sum(%mul, [-1]) : float32[8]
%sum1 = sum(%mul1, [-1]) : float32[8]
%cat = cat([%sum, %sum1]) : float32[16]
%view = view(%cat, [2, 8]) : float32[2, 8]
%add = add(%view, %x2) : float32[2, 8]
%convert_element_type2 = convert_element_type(%add, bfloat16) : bfloat16[2, 8]
return (%convert_element_type2)""",
        )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 4, 5, 8])
def test_same_values_in_the_same_layout(num_rows, bias):
    """Rewritten for few rows only; a view of the result is possible as before."""
    gm, inputs = graph(num_rows, bias=bias)
    (expected,) = gm(*inputs)
    with left_as_it_is(gm):
        rewritten = sum_few_rows(gm)
    (result,) = rewritten(*inputs)
    torch.testing.assert_close(result, expected)
    assert result.stride() == expected.stride()
    is_rewritten = 1 <= num_rows <= 4
    assert op_counts(rewritten)["sum"] == (num_rows if is_rewritten else 0)
    assert op_counts(rewritten)["permute"] == op_counts(rewritten)["addmm" if bias else "mm"] == (not is_rewritten)
    assert nodes_without_value(rewritten) == []


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_as_exact_as_the_dtype(dtype, tolerance):
    """Half the distance of two neighbours of ``dtype``, for half precision: rounded once, at the end."""
    gm, inputs = graph(2, bias=True, dtype=dtype)
    (result,) = sum_few_rows(gm)(*inputs)
    rows, weight, bias = (value.double() for value in inputs)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), rows @ weight.T + bias, rtol=tolerance, atol=min(tolerance, 1e-6))


def test_one_loop_reads_the_weight():
    """Inductor adds up both rows in one loop, and what the rows are computed from is not computed in it."""

    def activated(emit, rows, weight, bias):
        return linear(emit, emit(aten.exp.default, rows), weight, bias)

    gm, inputs = graph(2, bias=True, build=activated, length=64)
    expected = gm(*inputs)
    result, code = run_and_get_cpp_code(torch.compile(sum_few_rows(gm)), *inputs)
    torch.testing.assert_close(result, expected)
    before, _, loop = code.partition("tmp_acc0 = 0")
    loop, _, after = loop.partition("vec_reduce_all")
    assert [text.count(".exp()") for text in (before, loop, after)] == [1, 0, 0]
    assert "tmp_acc1_vec" in loop
    assert "extern_kernels.mm" not in code
    assert "extern_kernels.addmm" not in code


def plain(emit, rows, weight):
    return [emit(aten.mm.default, weight, emit(aten.permute.default, rows, [1, 0]))]


def scaled(emit, rows, weight, bias):
    return [emit(aten.addmm.default, bias, rows, emit(aten.permute.default, weight, [1, 0]), beta=0.5)]


def by_column(emit, rows, weight):
    """Permuted into the order it has: what is permuted lies column by column and has no transpose to take."""
    return [emit(aten.mm.default, rows, emit(aten.permute.default, emit(aten.permute.default, weight, [1, 0]), [0, 1]))]


@pytest.mark.parametrize(("build", "bias"), [(plain, False), (scaled, True), (by_column, False)])
def test_left_alone(build, bias):
    """Many rows, a product with factors, and a permutation that transposes nothing."""
    gm, _ = graph(3, bias=bias, build=build)
    before = op_counts(gm)
    assert op_counts(sum_few_rows(gm)) == before


def test_whole_numbers_are_left_alone():
    gm, _ = graph(2, bias=False, dtype=torch.int32)
    assert op_counts(sum_few_rows(gm)) == op_counts(gm)
