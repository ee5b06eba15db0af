"""Slices that are put together again are the tensor that they were cut from."""

import pytest
import torch

from taylorseer_fx.passes.join_slices import join_slices
from tests.graphs import hand_made, left_as_it_is, op_counts

aten = torch.ops.aten
END = 2**63 - 1


def graph(*slices: tuple[int, ...], dim: int = 1, extra: bool = False):
    def build(emit, x, y):
        parts = [emit(aten.slice.Tensor, x, 1, *edges) for edges in slices]
        return [emit(aten.exp.default, emit(aten.cat.default, [*parts, *([y] if extra else [])], dim))]

    return hand_made(build, (2, 6, 3), (2, 6, 3))


@pytest.mark.parametrize("dim", [1, -2])
@pytest.mark.parametrize("slices", [[(0, 2), (2, END)], [(0, 1), (1, 4), (4, 6)]])
def test_all_of_them(slices, dim):
    gm = graph(*slices, dim=dim)
    with left_as_it_is(gm):
        joined = join_slices(gm)
    inputs = [torch.randn(2, 6, 3) for _ in range(2)]
    torch.testing.assert_close(joined(*inputs), gm(*inputs))
    assert op_counts(joined) == {"exp": 1}


LEFT_ALONE = {
    "in another order": graph((2, 6), (0, 2)),
    "one is missing": graph((0, 2), (4, 6)),
    "twice the same": graph((0, 2), (1, 6)),
    "every other": graph((0, 6, 2), (0, 6, 2)),
    "beside another": graph((0, 3), (3, 6), extra=True),
    "along another dimension": graph((0, 3), (3, 6), dim=0),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone(name):
    gm = LEFT_ALONE[name]
    assert op_counts(join_slices(gm)) == op_counts(gm)
