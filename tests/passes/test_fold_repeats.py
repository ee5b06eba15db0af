"""Blocks of a forecast step that are the same become calls of one, with the same result to the bit; others are left alone."""

from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from expecttest import TestCase
from torch import Tensor, fx, nn

from taylorseer_fx import passes
from taylorseer_fx.passes.clean_up import clean_up
from taylorseer_fx.passes.fold_repeats import fold_repeats
from taylorseer_fx.passes.guard_regions import guard_regions
from taylorseer_fx.passes.specialize import specialize
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.passes.verify import nodes_without_value
from tests.graphs import Layer, hand_made, left_as_it_is, op_counts, pass_inputs, render, trace
from tests.zoo import TinyAttention

aten = torch.ops.aten


class Layers(nn.Module):
    """``x + gate * linear(x)``, some times over; from layer ``bent`` on with the gate's sine, of another shape."""

    def __init__(self, count: int, bent: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(count))
        self.bent = count if bent is None else bent

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x, gate if i < self.bent else gate.sin()[None])
        return x


class Blocks(nn.Module):
    """Attention and MLP in turns, each block with gates of its own."""

    def __init__(self, count: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attentions = nn.ModuleList(TinyAttention(8) for _ in range(count))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(count))
        self.gates = nn.ModuleList(nn.Linear(8, 16) for _ in range(count))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for attention, mlp, gates in zip(self.attentions, self.mlps, self.gates, strict=True):
            first, second = gates(condition)[:, None].chunk(2, dim=-1)
            x = first * attention(x) + x
            x = second * mlp(x) + x
        return x


class Across(Blocks):
    """With a stream that comes in as a convolution would leave it: its last dimension is not the innermost in memory."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return super().forward(x.sin().mT, condition)


def forecast(model: nn.Module, *args: Tensor, dynamic: bool = False) -> fx.GraphModule:
    """The forecast step's graph, of order 1."""
    guarded = guard_regions(*pass_inputs(trace(model.eval(), *args, dynamic=dynamic)), Storage(1))
    return clean_up(specialize(guarded, StepKind.FORECAST)).gm


def features(gm: fx.GraphModule) -> Sequence[Sequence[fx.Node]]:
    buffers: dict[str, list[fx.Node]] = {}
    for node in gm.graph.find_nodes(op="placeholder"):
        if node.name.startswith("feature"):
            buffers.setdefault(node.name.split("_")[0], []).append(node)
    return list(buffers.values())


def folded(gm: fx.GraphModule) -> fx.GraphModule:
    with left_as_it_is(gm):
        return fold_repeats(gm, features(gm))


def calls(gm: fx.GraphModule) -> int:
    return op_counts(gm)["invoke_subgraph"]


def small() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 4), torch.randn(4)


class TestSnapshots(TestCase):
    maxDiff = None

    @mock.patch.object(passes.fold_repeats, "COST_OF_A_CALL", 0)
    def test_layers(self):
        """The first layer has no other to join, so that it and the second are one link, with the weights."""
        self.assertExpectedInline(
            render(folded(forecast(Layers(5), *small()))),
            """\
%arg1_1 : float32[3, 4]
%arg2_1 : float32[4]
%coefficients : float32[2]
%feature0_b0 : float32[3, 4]
%feature1_b0 : float32[3, 4]
%feature2_b0 : float32[3, 4]
%feature3_b0 : float32[3, 4]
%feature4_b0 : float32[3, 4]
%feature0_b1 : float32[3, 4]
%feature1_b1 : float32[3, 4]
%feature2_b1 : float32[3, 4]
%feature3_b1 : float32[3, 4]
%feature4_b1 : float32[3, 4]
%select = select(%coefficients, 0, 0) : float32[]
%mul = mul(%feature0_b0, %select) : float32[3, 4]
%select1 = select(%coefficients, 0, 1) : float32[]
%mul1 = mul(%feature0_b1, %select1) : float32[3, 4]
%add = add(%mul, %mul1) : float32[3, 4]
%mul2 = mul(%arg2_1, %add) : float32[3, 4]
%add1 = add(%arg1_1, %mul2) : float32[3, 4]
%block0 = attribute block0
%invoke_subgraph = invoke_subgraph(%block0, block0, %feature1_b0, %select, %feature1_b1, %select1, %arg2_1, %add1) : tuple
%getitem = getitem(%invoke_subgraph, 0) : float32[3, 4]
%invoke_subgraph1 = invoke_subgraph(%block0, block0, %feature2_b0, %select, %feature2_b1, %select1, %arg2_1, %getitem) : tuple
%getitem1 = getitem(%invoke_subgraph1, 0) : float32[3, 4]
%invoke_subgraph2 = invoke_subgraph(%block0, block0, %feature3_b0, %select, %feature3_b1, %select1, %arg2_1, %getitem1) : tuple
%getitem2 = getitem(%invoke_subgraph2, 0) : float32[3, 4]
%invoke_subgraph3 = invoke_subgraph(%block0, block0, %feature4_b0, %select, %feature4_b1, %select1, %arg2_1, %getitem2) : tuple
%getitem3 = getitem(%invoke_subgraph3, 0) : float32[3, 4]
return (%getitem3)

block0:
%x0 : float32[3, 4]
%x1 : float32[]
%x2 : float32[3, 4]
%x3 : float32[]
%x4 : float32[4]
%x5 : float32[3, 4]
%mul = mul(%x0, %x1) : float32[3, 4]
%mul1 = mul(%x2, %x3) : float32[3, 4]
%add = add(%mul, %mul1) : float32[3, 4]
%mul2 = mul(%x4, %add) : float32[3, 4]
%add1 = add(%x5, %mul2) : float32[3, 4]
return (%add1)""",
        )


@pytest.mark.parametrize("count", [3, 8])
@pytest.mark.parametrize("make", [lambda count: (Layers(count), *small()), lambda count: (Blocks(count), *wide())])
def test_same_result_to_the_bit(make, count):
    gm = forecast(*make(count))
    result = folded(gm)
    inputs = [torch.randn(node.meta["val"].shape) for node in gm.graph.find_nodes(op="placeholder")]
    with torch.no_grad():
        assert torch.equal(result(*inputs)[0], gm(*inputs)[0])
    assert (calls(result) >= 3) == (count > 3)
    assert nodes_without_value(result) == []


def wide() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 6, 8), torch.randn(2, 8)


def test_a_block_is_one_call():
    """Two features a block: the branches of a block are not called apart."""
    result = folded(forecast(Blocks(9), *wide()))
    assert calls(result) == 9
    assert [name for name, _ in result.named_children()] == ["block0"]


def test_the_first_block_is_called_as_well():
    """Though the stream before it lies otherwise in memory than the one between blocks."""
    gm = forecast(Across(5), torch.randn(2, 8, 6), torch.randn(2, 8))
    result = folded(gm)
    assert calls(result) == 5
    assert op_counts(result)["inductor_force_stride_order"] == 1
    inputs = [torch.randn(node.meta["val"].shape) for node in gm.graph.find_nodes(op="placeholder")]
    with torch.no_grad():
        assert torch.equal(result(*inputs)[0], gm(*inputs)[0])


def test_what_to_compile_does_not_grow_with_the_depth():
    sizes = [len(folded(forecast(Blocks(count), *wide())).block0.graph.nodes) for count in (5, 8)]
    assert sizes[0] == sizes[1]


def test_layers_of_two_kinds():
    """Seventeen layers, the last eight with another gate: a body for either kind; the gate that those share is computed once."""
    result = folded(forecast(Layers(17, bent=9), *small()))
    assert len(list(result.named_children())) == 2
    assert op_counts(result)["sin"] == 1


def test_too_few():
    gm = forecast(Layers(4), *small())
    assert folded(gm) is gm


def test_symbolic_shapes():
    """Inductor takes no symbolic operands of a call."""
    gm = forecast(Layers(8), *small(), dynamic=True)
    assert any(isinstance(size, torch.SymInt) for node in gm.graph.nodes for size in getattr(node.meta.get("val"), "shape", ()))
    assert folded(gm) is gm


def chain(*, shares: bool = False, look: Any = aten.view.default) -> fx.GraphModule:
    """Links by hand: the sine of the last stream, read again by the next link, with ``shares`` also as a view."""

    def build(emit, x, *buffers):
        sine = view = None
        for buffer in buffers:
            before, turned = sine, view
            sine = emit(aten.sin.default, x)
            view = emit(look, sine, [3, 2])
            x = emit(aten.add.Tensor, x, emit(aten.view.default, emit(aten.mul.Tensor, view, buffer), [2, 3]))
            for extra in (before, turned if shares else before):
                x = emit(aten.add.Tensor, x, emit(aten.view.default, extra, [2, 3])) if extra is not None else x
        return [x]

    return hand_made(build, (2, 3), *[(3, 2)] * 12)


def is_folded(gm: fx.GraphModule) -> bool:
    buffers = gm.graph.find_nodes(op="placeholder")[1:]
    return fold_repeats(gm, [[node] for node in buffers]) is not gm


@pytest.mark.parametrize("look", [aten.view.default, aten._unsafe_view.default], ids=str)
def test_nothing_that_shares_memory_comes_out_of_a_call(look):
    """What Inductor reuses of one result would still be read as the other; the schema of one of these does not tell."""
    assert is_folded(chain(look=look))
    assert not is_folded(chain(shares=True, look=look))


def test_other_devices():
    """The same graph on a CPU and elsewhere."""
    assert is_folded(chain())
    with torch.device("meta"):
        assert not is_folded(chain())
