"""What a forecast step computes whole for a part of it is told."""

import pytest
import torch
from torch import Tensor, nn

from taylorseer_fx import taylorseer_backend
from taylorseer_fx.passes.narrow import narrow
from taylorseer_fx.passes.read_whole import ReadWhole, find_read_whole
from tests.graphs import hand_made

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("op", "args", "whole"),
    [
        pytest.param(aten.cumsum.default, (1,), [ReadWhole("aten.cumsum", "cumsum_default", 4 * 3 * 8)], id="no-rule"),
        pytest.param(aten.tanh.default, (), [], id="a-rule"),
    ],
)
def test_an_operator_without_a_rule(op, args, whole):
    def build(emit, x):
        return [emit(aten.slice.Tensor, emit(op, x, *args), 1, 2, 4)]

    assert list(find_read_whole(narrow(hand_made(build, (3, 8))).graph)) == whole


def test_what_is_read_whole_anyway_is_not_told():
    gm = narrow(hand_made(lambda emit, x: [emit(aten.cumsum.default, x, 1)], (3, 8)))
    assert find_read_whole(gm.graph) == ()


class LastTokens(nn.Module):
    """A residual branch, then sums along the tokens of which only the last are read."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.linear(x)).cumsum(1)[:, 3:]


def test_the_report_tells():
    backend = taylorseer_backend(compiler="eager")
    compiled = torch.compile(LastTokens(), backend=backend)
    with torch.no_grad(), backend.stream("one"):
        compiled(torch.ones(2, 5, 8))
    report = backend.explain()
    assert [(entry.op, entry.num_bytes) for entry in report.read_whole] == [("aten.cumsum", 2 * 5 * 8 * 4)]
    assert "read whole:    aten.cumsum (" in str(report)
    assert "), 320 B" in str(report)
