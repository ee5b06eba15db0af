"""Sums that are spelled some other way, written as adds; and what only looks like them."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from expecttest import TestCase
from torch import Tensor, nn

from taylorseer_fx.passes.canonicalize import canonicalize
from taylorseer_fx.passes.verify import nodes_without_value
from tests.graphs import Traced, hand_made, op_counts, render, trace
from tests.torch_version import TRACES_LERP, since_2_12

aten = torch.ops.aten


class Spelled(nn.Module):
    """Sums of two matrices, or three, with weights from a vector; none is residual."""

    def __init__(self, spell: Callable[..., Tensor]) -> None:
        super().__init__()
        self.spell = spell

    def forward(self, x: Tensor, f: Tensor, weight: Tensor) -> Tensor:
        return self.spell(x, f, weight)


def arguments(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x, f, weight = torch.randn(3, 4, dtype=dtype), torch.randn(3, 4, dtype=dtype), torch.linspace(-0.2, 1.2, 4, dtype=dtype)
    return x, f, weight


SPELLED = {
    "addcmul": lambda x, f, w: torch.addcmul(x, w, f, value=0.3),
    "sum": lambda x, f, w: sum([x, f, w]),
    "stacked-first": lambda x, f, w: torch.stack([x, f, w.expand_as(x)]).sum(0),
    "stacked-inside": lambda x, f, w: torch.stack([x, f], 1).sum(1, keepdim=True),
    "stacked-last": lambda x, f, w: torch.stack([x, f, w * x], -1).mean(-1),
    "joined": lambda x, f, w: torch.cat([x[None], f[None]]).sum(0),
    "lerp-small": lambda x, f, w: torch.lerp(x, f, 0.3),
    "lerp-large": lambda x, f, w: torch.lerp(x, f, 0.8),
    "lerp-tensor": lambda x, f, w: torch.lerp(x, f, w),
}
if not TRACES_LERP:
    SPELLED = {name: form for name, form in SPELLED.items() if not name.startswith("lerp")}


@cache
def traced_sum(name: str, dtype: torch.dtype = torch.float32) -> Traced:
    return trace(Spelled(SPELLED[name]), *arguments(dtype))


IS_LEFT = {"sum", "mean", "addcmul", "cat", "where", "view"}


class TestApplied:
    @pytest.mark.parametrize("name", SPELLED)
    def test_only_adds_and_products_are_left(self, name):
        gm = canonicalize(traced_sum(name).gm)
        assert not IS_LEFT & op_counts(gm).keys()
        assert nodes_without_value(gm) == []
        assert render(canonicalize(gm)) == render(gm)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("name", SPELLED)
    def test_numerics(self, name, dtype):
        """The same value up to rounding, in the same dtype; a weight outside [0, 1] in a tensor is no trouble."""
        traced, eps = traced_sum(name, dtype), torch.finfo(dtype).eps
        (actual,) = canonicalize(traced.gm)(*traced.real_inputs)
        torch.testing.assert_close(actual, SPELLED[name](*arguments(dtype)), rtol=2 * eps, atol=2 * eps)

    def test_dynamic_shapes(self):
        gm = canonicalize(trace(Spelled(SPELLED["stacked-inside"]), *arguments(), dynamic=True).gm)
        assert not IS_LEFT & op_counts(gm).keys()


def whole_numbers(emit, x, f):
    ints = [emit(torch.ops.prims.convert_element_type.default, node, torch.int64) for node in (x, f)]
    return [*reduced(emit, *ints), emit(aten.add.Tensor, emit(aten.add.Tensor, ints[0], 0), ints[1])]


def lerp_beyond(emit, x, f):
    return [emit(aten.add.Tensor, x, emit(aten.sub.Tensor, f, x), alpha=1.5)]


def lerp_backwards(emit, x, f):
    return [emit(aten.add.Tensor, x, emit(aten.sub.Tensor, x, f), alpha=0.5)]


def reduced(emit, x, f, *, stacked=True, dims=(0,), times=1, **kwargs):
    parts = [emit(aten.unsqueeze.default, node, 0) if stacked else node for node in (x, f)]
    return [emit(aten.sum.dim_IntList, emit(aten.cat.default, parts * times), list(dims), **kwargs)]


class TestLeftAlone:
    @pytest.mark.parametrize(
        "build",
        [
            pytest.param(whole_numbers, id="whole-numbers"),
            pytest.param(lambda emit, x, f: [emit(aten.add.Tensor, x, 1)], id="one"),
            pytest.param(lambda emit, x, f: [emit(aten.add.Tensor, x, 0)], id="a-copy-that-is-returned"),
            pytest.param(lerp_beyond, id="lerp-beyond-one"),
            pytest.param(lerp_backwards, id="lerp-of-nothing"),
            pytest.param(lambda emit, x, f: reduced(emit, x, f, stacked=False), id="no-stack"),
            pytest.param(lambda emit, x, f: reduced(emit, x, f, dims=(0, 1)), id="two-dimensions"),
            pytest.param(lambda emit, x, f: reduced(emit, x, f, dims=(1,)), id="another-dimension"),
            pytest.param(lambda emit, x, f: reduced(emit, x, f, times=2), id="twice-the-same"),
            pytest.param(lambda emit, x, f: reduced(emit, x, f, dtype=torch.float64), id="another-dtype"),
        ],
    )
    def test_what_is_none(self, build):
        gm = hand_made(build, (3, 4), (3, 4))
        assert render(canonicalize(gm)) == render(gm)


class TestSnapshots(TestCase):
    maxDiff = None

    def picture(self, name: str) -> str:
        return render(canonicalize(traced_sum(name, torch.bfloat16).gm))

    def test_sum_of_a_list(self):
        self.assertExpectedInline(
            self.picture("sum"),
            """\
%arg0_1 : bfloat16[3, 4]
%arg1_1 : bfloat16[3, 4]
%arg2_1 : bfloat16[4]
%add = add(%arg0_1, %arg1_1) : bfloat16[3, 4]
%add1 = add(%add, %arg2_1) : bfloat16[3, 4]
return (%add1)""",
        )

    @since_2_12
    def test_stack_of_three(self):
        """Added up in float32, as the sum is."""
        self.assertExpectedInline(
            self.picture("stacked-last"),
            """\
%arg0_1 : bfloat16[4]
%arg1_1 : bfloat16[3, 4]
%arg2_1 : bfloat16[3, 4]
%mul = mul(%arg0_1, %arg1_1) : bfloat16[3, 4]
%convert_element_type = convert_element_type(%arg1_1, float32) : float32[3, 4]
%convert_element_type1 = convert_element_type(%arg2_1, float32) : float32[3, 4]
%add = add(%convert_element_type, %convert_element_type1) : float32[3, 4]
%convert_element_type2 = convert_element_type(%mul, float32) : float32[3, 4]
%add1 = add(%add, %convert_element_type2) : float32[3, 4]
%div = div(%add1, 3) : float32[3, 4]
%convert_element_type3 = convert_element_type(%div, bfloat16) : bfloat16[3, 4]
return (%convert_element_type3)""",
        )

    @since_2_12
    def test_lerp_with_a_number(self):
        self.assertExpectedInline(
            self.picture("lerp-large"),
            """\
%arg0_1 : bfloat16[3, 4]
%arg1_1 : bfloat16[3, 4]
%mul = mul(%arg0_1, 0.19999999999999996) : bfloat16[3, 4]
%mul1 = mul(%arg1_1, 0.8) : bfloat16[3, 4]
%add = add(%mul, %mul1) : bfloat16[3, 4]
return (%add)""",
        )

    @since_2_12
    def test_lerp_with_a_tensor(self):
        self.assertExpectedInline(
            self.picture("lerp-tensor"),
            """\
%arg0_1 : bfloat16[3, 4]
%arg1_1 : bfloat16[3, 4]
%arg2_1 : bfloat16[4]
%sub = sub(1.0, %arg2_1) : bfloat16[4]
%mul = mul(%arg0_1, %sub) : bfloat16[3, 4]
%mul1 = mul(%arg2_1, %arg1_1) : bfloat16[3, 4]
%add = add(%mul, %mul1) : bfloat16[3, 4]
return (%add)""",
        )
