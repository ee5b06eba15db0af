"""A convolution that cuts an image or a video into patches is a product: the same values, lying the same way."""

import pytest
import torch

from taylorseer_fx.passes.patches_as_products import patches_as_products
from taylorseer_fx.passes.verify import nodes_without_value
from tests.graphs import hand_made, left_as_it_is, op_counts

aten = torch.ops.aten


def graph(sizes, window, *, bias=True, stride=None, padding=0, dilation=1, transposed=False, groups=1):
    rank = len(window)
    channels = 4 // groups if not transposed else 4

    def build(emit, x, weight, *addend):
        arguments = [stride or window, [padding] * rank, [dilation] * rank, transposed, [0] * rank, groups]
        image = emit(aten.convolution.default, x, weight, addend[0] if addend else None, *arguments)
        return [emit(aten.view.default, image, [2, -1])]

    shapes = [(2, 4, *sizes), (4 if transposed else 8, channels if not transposed else 8, *window), *([(8,)] if bias else [])]
    return hand_made(build, *shapes), [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("sizes", "window"), [((6, 4), (2, 2)), ((3, 8, 4), (1, 4, 2)), ((10,), (5,)), ((4, 4), (1, 1))])
def test_same_values(sizes, window, bias):
    gm, inputs = graph(sizes, window, bias=bias)
    with left_as_it_is(gm):
        rewritten = patches_as_products(gm)
    (expected,), (result,) = gm(*inputs), rewritten(*inputs)
    torch.testing.assert_close(result, expected)
    assert result.stride() == expected.stride()
    assert op_counts(rewritten)["convolution"] == 0
    assert nodes_without_value(rewritten) == []


OTHERS = {
    "overlapping": graph((6, 4), (2, 2), stride=[1, 1]),
    "padded": graph((6, 4), (2, 2), padding=1),
    "with holes": graph((6, 4), (2, 2), dilation=2),
    "in groups": graph((6, 4), (2, 2), groups=2),
    "transposed": graph((6, 4), (2, 2), transposed=True),
    "with a rest": graph((7, 4), (2, 2)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_left_alone(name):
    gm, _ = OTHERS[name]
    assert op_counts(patches_as_products(gm)) == op_counts(gm)
