"""Buffers are written where their values are made: the same contents, after everything that reads them."""

import pytest
import torch
from expecttest import TestCase
from torch import Tensor, fx

from taylorseer_fx.compile import make_eager
from taylorseer_fx.passes.emit import emit_as_it_is
from taylorseer_fx.passes.lower import TARGETS, Lowering, Target
from taylorseer_fx.passes.pipeline import run_passes
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.passes.store_early import store_early
from taylorseer_fx.passes.verify import nodes_without_value
from tests.graphs import hand_made, left_as_it_is, op_counts, render, trace, two_layers
from tests.passes.test_find_stored import Flux, inputs

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

    return add_store(hand_made(build, (6, 3), (end - start, 3)), parts["buffer"], parts["kept"])


def add_store(gm, buffer, value):
    """Store ``value`` at the end."""
    with gm.graph.inserting_before(gm.graph.output_node()):
        emit_as_it_is(gm.graph, aten.copy_.default, (buffer, value), buffer.meta["val"])
    gm.recompile()
    return gm


def joined(order: str = "text image", *, dim: int = 0, image=None, text=None, more=None, size=(4, 3)):
    """The feature of an image is stored, at the end, and read where the image is joined with what else ``order`` names.

    ``image`` and ``text`` make the parts of the feature and of another input, ``more`` makes other results of what was made.
    """
    image = image or (lambda emit, feature, x: emit(aten.add.Tensor, emit(aten.mul.Tensor, feature, x), x))
    text = text or (lambda emit, y: emit(aten.add.Scalar, y, 1))
    made = {}

    def build(emit, x, y, buffer):
        made["feature"], made["buffer"] = emit(aten.exp.default, x), buffer
        made["image"] = image(emit, made["feature"], x)
        for name in order.split():
            if name not in made:
                made[name] = text(emit, y)
        whole = emit(aten.cat.default, [made[name] for name in order.split()], dim)
        return [emit(aten.cos.default, whole), *(more(emit, made) if more is not None else [])]

    gm = hand_made(build, size, tuple(2 if i == dim % len(size) else length for i, length in enumerate(size)), size)
    return add_store(gm, made["buffer"], made["feature"])


class TestSnapshot(TestCase):
    maxDiff = None

    def test_a_part(self):
        self.assertExpectedInline(
            render(store_early(stored(2, 6))),
            """\
%x0 : float32[6, 3]
%x1 : float32[4, 3]
%exp = exp(%x0) : float32[6, 3]
%slice = slice(%exp, 0, 2, 6) : float32[4, 3]
%iota = iota(6, start=0, step=1, dtype=int64, device=cpu, requires_grad=False) : int64[6]
%view = view(%iota, [-1, 1]) : int64[6, 1]
%sub = sub(%iota, 2) : int64[6]
%clamp_min = clamp_min(%sub, 0) : int64[6]
%slice1 = slice(%slice, 0, 0, 1) : float32[1, 3]
%ge = ge(%view, 2) : bool[6, 1]
%where = where(%ge, %exp, %slice1) : float32[6, 3]
%index_put_ = index_put_(%x1, [%clamp_min], %where) : float32[4, 3]
%neg = neg(%exp) : float32[6, 3]
%cos = cos(%neg) : float32[6, 3]
return (%cos)""",
        )

    def test_joined(self):
        self.assertExpectedInline(
            render(store_early(joined("text image mask"))),
            """\
%x0 : float32[4, 3]
%x1 : float32[2, 3]
%x2 : float32[4, 3]
%exp = exp(%x0) : float32[4, 3]
%expand = expand(%exp, [4, 3]) : float32[4, 3]
%full = full([2, 3], 0.0, dtype=float32, device=cpu, pin_memory=False) : float32[2, 3]
%full1 = full([2, 3], 0.0, dtype=float32, device=cpu, pin_memory=False) : float32[2, 3]
%cat = cat([%full, %expand, %full1], 0) : float32[8, 3]
%iota = iota(8, start=0, step=1, dtype=int64, device=cpu, requires_grad=False) : int64[8]
%view = view(%iota, [-1, 1]) : int64[8, 1]
%sub = sub(%iota, 2) : int64[8]
%clamp_min = clamp_min(%sub, 0) : int64[8]
%slice = slice(%exp, 0, 0, 1) : float32[1, 3]
%ge = ge(%view, 2) : bool[8, 1]
%where = where(%ge, %cat, %slice) : float32[8, 3]
%slice1 = slice(%exp, 0, 3, 4) : float32[1, 3]
%lt = lt(%view, 6) : bool[8, 1]
%where1 = where(%lt, %where, %slice1) : float32[8, 3]
%clamp_max = clamp_max(%clamp_min, 3) : int64[8]
%index_put_ = index_put_(%x2, [%clamp_max], %where1) : float32[4, 3]
%mul = mul(%exp, %x0) : float32[4, 3]
%add = add(%mul, %x0) : float32[4, 3]
%add1 = add(%x1, 1) : float32[2, 3]
%add2 = add(%x1, 1) : float32[2, 3]
%cat1 = cat([%add1, %add, %add2], 0) : float32[8, 3]
%cos = cos(%cat1) : float32[8, 3]
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


JOINED = {
    "text first": joined("text image"),
    "image first": joined("image text"),
    "between": joined("text image mask"),
    "behind two": joined("text mask image"),
    "before three": joined("image text mask frame"),
    "along the last dimension": joined("text image", dim=1),
    "from the back": joined("text image", dim=-2),
    "with no step between": joined(image=lambda emit, feature, x: emit(aten.neg.default, feature)),
    "read twice on the way": joined(
        image=lambda emit, feature, x: emit(aten.mul.Tensor, feature, emit(aten.sin.default, feature))
    ),
    "broadcast on the way": joined(
        image=lambda emit, feature, x: emit(aten.mul.Tensor, feature, emit(aten.slice.Tensor, x, 0, 0, 1))
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_joined_same_contents(name):
    """And the very same results."""
    gm = JOINED[name]
    with left_as_it_is(gm):
        early = store_early(gm)
    given, old, new = inputs_of(gm)
    assert torch.equal(early(*given, new)[0], gm(*given, old)[0])
    assert torch.equal(old, new)
    assert nodes_without_value(early) == []
    assert op_counts(early)["index_put_"] == 1
    assert op_counts(early)["copy_"] == 0


@pytest.mark.inductor
@pytest.mark.parametrize("name", ["text first", "between"])
def test_joined_compiled(name):
    gm = JOINED[name]
    given, old, new = inputs_of(gm)
    early = store_early(gm)
    compiled = torch.compile(fx.GraphModule(early, early.graph), fullgraph=True)
    torch.testing.assert_close(compiled(*given, new)[0], gm(*given, old)[0])
    torch.testing.assert_close(old, new)


def inputs_of(gm):
    """Random inputs, and two empty buffers."""
    *shapes, buffer = [node.meta["val"].shape for node in gm.graph.find_nodes(op="placeholder")]
    return [torch.randn(*shape) for shape in shapes], torch.zeros(buffer), torch.zeros(buffer)


READ_OTHERWISE = {
    "by itself": joined(more=lambda emit, made: [emit(aten.slice.Tensor, made["feature"], 0, 0, 2)]),
    "as a result": joined(more=lambda emit, made: [made["feature"]]),
    "on the way": joined(more=lambda emit, made: [emit(aten.sum.dim_IntList, made["image"], [1])]),
    "as a result on the way": joined(more=lambda emit, made: [emit(aten.neg.default, made["image"])]),
    "not element by element": joined(
        image=lambda emit, feature, x: emit(aten.add.Tensor, emit(aten.flip.default, feature, [0]), x)
    ),
    "as more elements": joined(
        size=(1, 3), image=lambda emit, feature, x: emit(aten.mul.Tensor, feature, emit(aten.expand.default, x, [4, 3]))
    ),
    "in two parts": joined("image text image"),
    "in two tensors": joined(more=lambda emit, made: [emit(aten.cat.default, [made["image"], made["text"]])]),
    "as a part": joined(image=lambda emit, feature, x: feature),
    "beside an input": joined(text=lambda emit, y: y),
    "beside what is read elsewhere": joined(more=lambda emit, made: [emit(aten.neg.default, made["text"])]),
}


@pytest.mark.parametrize("name", READ_OTHERWISE)
def test_read_otherwise(name):
    """Then the loop that reads it is not that of a ``cat``."""
    early = store_early(READ_OTHERWISE[name])
    assert op_counts(early)["copy_"] == 1
    assert op_counts(early)["index_put_"] == 0


EARLY = Target("early", full=Lowering(("join_slices", "store_early")))


def full_step(*, dynamic=False):
    """A model that joins text and image behind its first block: its inputs, and the full step before and after."""
    traced = trace(Flux(), *inputs(), dynamic=dynamic)
    result = run_passes(traced.gm, traced.static_inputs, Storage(1), target=EARLY)
    return traced, result, result.variants[StepKind.FULL], result.lowered[StepKind.FULL]


def test_a_model():
    """All but the last feature, of which only the image is read, are read in longer loops. Results are the very same."""
    traced, result, before, after = full_step()
    assert (op_counts(after.gm)["index_put_"], op_counts(after.gm)["copy_"]) == (3, 1)
    extra = [node.meta["val"] for node in (*result.guarded.coefficients, *result.guarded.buffers)]
    every_input = [*traced.real_inputs, *(torch.randn(value.shape, dtype=value.dtype) for value in extra)]
    results = []
    for variant in (before, after):
        own = [value.clone() if isinstance(value := every_input[i], Tensor) else value for i in variant.input_positions]
        with torch.no_grad():
            results.append((make_eager(variant.gm, own, ())([*own]), own))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_symbolic_sizes():
    """Where rows begin is not known before the step."""
    *_, before, after = full_step(dynamic=True)
    assert op_counts(after.gm)["copy_"] == op_counts(before.gm)["copy_"]
    assert op_counts(after.gm)["index_put_"] == 0


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
