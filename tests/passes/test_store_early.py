"""Buffers are written where their values are made: the same contents, after everything that reads them."""

import pytest
import torch
from expecttest import TestCase
from torch import fx

from taylorseer_fx.passes.emit import emit_as_it_is
from taylorseer_fx.passes.lower import TARGETS
from taylorseer_fx.passes.pipeline import run_passes
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.passes.store_early import store_early
from taylorseer_fx.passes.verify import nodes_without_value
from tests.graphs import hand_made, left_as_it_is, op_counts, render, trace, two_layers

aten = torch.ops.aten
BEFORE, MIDDLE, AFTER, ALL = (2, 6), (1, 4), (0, 5), (0, 6)


def stored(start: int, end: int, *, read: tuple[int, int] = ALL):
    """Rows ``start`` to ``end`` of a feature are stored, at the end; ``read`` is what the step itself reads of it."""
    parts = {}

    def build(emit, x, buffer):
        feature = emit(aten.exp.default, x)
        kept = emit(aten.slice.Tensor, feature, 0, start, end)
        seen = (
            emit(aten.slice.Tensor, emit(aten.neg.default, feature), 0, *read) if read != ALL else emit(aten.neg.default, feature)
        )
        parts.update(buffer=buffer, kept=kept)
        return [emit(aten.cos.default, seen)]

    gm = hand_made(build, (6, 3), (end - start, 3))
    with gm.graph.inserting_before(gm.graph.output_node()):
        emit_as_it_is(gm.graph, aten.copy_.default, (parts["buffer"], parts["kept"]), parts["buffer"].meta["val"])
    gm.recompile()
    return gm


class TestSnapshot(TestCase):
    maxDiff = None

    def test_a_part(self):
        self.assertExpectedInline(
            render(store_early(stored(2, 6))),
            """\
%x0 : float32[6, 3]
%x1 : float32[4, 3]
%exp = exp(%x0) : float32[6, 3]
%iota = iota(6, start=0, step=1, dtype=int64, device=cpu, requires_grad=False) : int64[6]
%view = view(%iota, [-1, 1]) : int64[6, 1]
%sub = sub(%iota, 2) : int64[6]
%clamp_min = clamp_min(%sub, 0) : int64[6]
%slice = slice(%exp, 0, 2, 3) : float32[1, 3]
%ge = ge(%view, 2) : bool[6, 1]
%where = where(%ge, %exp, %slice) : float32[6, 3]
%index_put_ = index_put_(%x1, [%clamp_min], %where) : float32[4, 3]
%neg = neg(%exp) : float32[6, 3]
%cos = cos(%neg) : float32[6, 3]
return (%cos)""",
        )


@pytest.mark.parametrize("window", [ALL, BEFORE, MIDDLE, AFTER])
def test_same_contents(window):
    gm = stored(*window)
    with left_as_it_is(gm):
        early = store_early(gm)
    x, old, new = torch.randn(6, 3), *(torch.zeros(window[1] - window[0], 3) for _ in range(2))
    torch.testing.assert_close(early(x, new), gm(x, old))
    assert torch.equal(old, new)
    assert nodes_without_value(early) == []
    assert op_counts(early)["index_put_"] == (window != ALL)


@pytest.mark.parametrize("read", [(2, 6), (3, 5)])
def test_no_more_is_read_than_stored(read):
    """Then the loop that reads it is as long as the one that stores it."""
    early = store_early(stored(2, 6, read=read))
    assert op_counts(early)["copy_"] == 1
    assert op_counts(early)["index_put_"] == 0


@pytest.mark.parametrize("dtype", [None, torch.float8_e4m3fn])
def test_after_all_readers(dtype):
    """Differences are made of the buffers that are written; the verifier, which is on in tests, would say so."""
    model, args = two_layers()
    traced = trace(model, *args)
    storage = Storage(2, dtype) if dtype is not None else Storage(2)
    result = run_passes(traced.gm, traced.static_inputs, storage, target=TARGETS["cuda"])
    nodes: list[fx.Node] = list(result.lowered[StepKind.FULL].gm.graph.nodes)
    stores = [node for node in nodes if node.target is aten.copy_.default]
    assert len(stores) == (3 if dtype is not None else 1) * 2
    assert nodes[-1 - len(stores) : -1] != stores
