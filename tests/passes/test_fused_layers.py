"""Layers of torch in one operator are written out, and compute what the operator does."""

import operator
from typing import Any

import pytest
import torch
from expecttest import TestCase
from torch import Tensor, fx, nn
from torch._inductor.lowering import lowerings
from torch._subclasses.fake_tensor import FakeTensorMode

from taylorseer_fx.passes.canonicalize import canonicalize
from taylorseer_fx.passes.emit import emitter, placeholder
from taylorseer_fx.passes.find_hidden_adds import find_hidden_adds
from taylorseer_fx.passes.find_regions import find_regions
from taylorseer_fx.passes.ops import is_heavy
from taylorseer_fx.passes.regions import Reason
from tests.custom_ops import is_traced
from tests.graphs import find, find_stacks, op_counts, render, trace

LAYER: Any = torch.ops.aten._transformer_encoder_layer_fwd.default
ATTENTION: Any = torch.ops.aten._native_multi_head_attention.default
WIDTH, HEADS, LENGTH, BATCH = 8, 2, 3, 2

# Before, ``torch.compile`` does not trace a model that runs it.
pytestmark = pytest.mark.skipif(not is_traced(), reason="torch before 2.13 has no fake kernel of the encoder layer")


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape) / 2


def attention_weights() -> list[Tensor]:
    return [numbers(3 * WIDTH, WIDTH), numbers(3 * WIDTH), numbers(WIDTH, WIDTH), numbers(WIDTH)]


def layer_args(norm_first: bool = False, use_gelu: bool = False) -> list[Any]:
    """All but a mask, with weights that do something."""
    torch.manual_seed(0)
    norms = [numbers(WIDTH) for _ in range(4)]
    mlp = [numbers(2 * WIDTH, WIDTH), numbers(2 * WIDTH), numbers(WIDTH, 2 * WIDTH), numbers(WIDTH)]
    x = numbers(BATCH, LENGTH, WIDTH)
    return [x, WIDTH, HEADS, *attention_weights(), use_gelu, norm_first, 1e-5, *norms, *mlp]


CAUSAL = torch.ones(LENGTH, LENGTH).triu(1).bool()
PADDING = torch.tensor([[False, False, False], [False, False, True]])
MASKS: dict[str, list[Any]] = {
    "none": [None, None],
    "queries and keys": [CAUSAL, 0],
    "keys": [PADDING, 1],
    "heads": [(CAUSAL | PADDING[:, None, None]).expand(BATCH, HEADS, LENGTH, LENGTH), 2],
    "of floats": [torch.zeros(LENGTH, LENGTH).masked_fill(CAUSAL, -torch.inf), 0],
    "of finite floats": [CAUSAL * 0.5, 0],
}


def graph_of(op: Any, args: list[Any], num_results: int = 1) -> tuple[fx.GraphModule, list[Tensor]]:
    """A graph that calls ``op`` on inputs for the tensors among ``args``, and these; a tensor twice is an input once."""
    graph, mode = fx.Graph(), FakeTensorMode()
    tensors = list({id(arg): arg for arg in args if isinstance(arg, Tensor)}.values())
    nodes = {id(tensor): placeholder(graph, f"x{i}", mode.from_tensor(tensor)) for i, tensor in enumerate(tensors)}
    emit = emitter(graph, mode)
    result = emit(op, *(nodes.get(id(arg), arg) for arg in args))
    graph.output((result,) if num_results == 1 else tuple(emit(operator.getitem, result, i) for i in range(num_results)))
    return fx.GraphModule({}, graph), tensors


def assert_same_results(op: Any, args: list[Any], num_results: int = 1) -> fx.GraphModule:
    gm, tensors = graph_of(op, args, num_results)
    after = canonicalize(gm)
    assert op_counts(after)[op._schema.name.removeprefix("aten::")] == 0
    torch.testing.assert_close(after(*tensors), gm(*tensors))
    return after


class TestSnapshots(TestCase):
    maxDiff = None

    def test_encoder_layer(self):
        gm, _ = graph_of(LAYER, layer_args())
        self.assertExpectedInline(
            render(canonicalize(gm)),
            """\
%x0 : float32[2, 3, 8]
%x1 : float32[24, 8]
%x2 : float32[24]
%x3 : float32[8, 8]
%x4 : float32[8]
%x5 : float32[8]
%x6 : float32[8]
%x7 : float32[8]
%x8 : float32[8]
%x9 : float32[16, 8]
%x10 : float32[16]
%x11 : float32[8, 16]
%x12 : float32[8]
%view = view(%x0, [6, 8]) : float32[6, 8]
%permute = permute(%x1, [1, 0]) : float32[8, 24]
%addmm = addmm(%x2, %view, %permute) : float32[6, 24]
%view1 = view(%addmm, [2, 3, 24]) : float32[2, 3, 24]
%split = split(%view1, 8, -1) : list
%getitem = getitem(%split, 0) : float32[2, 3, 8]
%getitem1 = getitem(%split, 1) : float32[2, 3, 8]
%getitem2 = getitem(%split, 2) : float32[2, 3, 8]
%view2 = view(%getitem, [2, 3, 2, 4]) : float32[2, 3, 2, 4]
%permute1 = permute(%view2, [0, 2, 1, 3]) : float32[2, 2, 3, 4]
%view3 = view(%getitem1, [2, 3, 2, 4]) : float32[2, 3, 2, 4]
%permute2 = permute(%view3, [0, 2, 1, 3]) : float32[2, 2, 3, 4]
%view4 = view(%getitem2, [2, 3, 2, 4]) : float32[2, 3, 2, 4]
%permute3 = permute(%view4, [0, 2, 1, 3]) : float32[2, 2, 3, 4]
%_scaled_dot_product_flash_attention_for_cpu = _scaled_dot_product_flash_attention_for_cpu(%permute1, %permute2, %permute3) : tuple
%getitem3 = getitem(%_scaled_dot_product_flash_attention_for_cpu, 0) : float32[2, 2, 3, 4]
%permute4 = permute(%getitem3, [0, 2, 1, 3]) : float32[2, 3, 2, 4]
%view5 = view(%permute4, [2, 3, 8]) : float32[2, 3, 8]
%view6 = view(%view5, [6, 8]) : float32[6, 8]
%permute5 = permute(%x3, [1, 0]) : float32[8, 8]
%addmm1 = addmm(%x4, %view6, %permute5) : float32[6, 8]
%view7 = view(%addmm1, [2, 3, 8]) : float32[2, 3, 8]
%add = add(%x0, %view7) : float32[2, 3, 8]
%var_mean = var_mean(%add, [2], correction=0, keepdim=True) : tuple
%getitem4 = getitem(%var_mean, 0) : float32[2, 3, 1]
%getitem5 = getitem(%var_mean, 1) : float32[2, 3, 1]
%add1 = add(%getitem4, 1e-05) : float32[2, 3, 1]
%rsqrt = rsqrt(%add1) : float32[2, 3, 1]
%sub = sub(%add, %getitem5) : float32[2, 3, 8]
%mul = mul(%sub, %rsqrt) : float32[2, 3, 8]
%mul1 = mul(%mul, %x5) : float32[2, 3, 8]
%add2 = add(%mul1, %x6) : float32[2, 3, 8]
%view8 = view(%add2, [6, 8]) : float32[6, 8]
%permute6 = permute(%x9, [1, 0]) : float32[8, 16]
%addmm2 = addmm(%x10, %view8, %permute6) : float32[6, 16]
%view9 = view(%addmm2, [2, 3, 16]) : float32[2, 3, 16]
%relu = relu(%view9) : float32[2, 3, 16]
%view10 = view(%relu, [6, 16]) : float32[6, 16]
%permute7 = permute(%x11, [1, 0]) : float32[16, 8]
%addmm3 = addmm(%x12, %view10, %permute7) : float32[6, 8]
%view11 = view(%addmm3, [2, 3, 8]) : float32[2, 3, 8]
%add3 = add(%add2, %view11) : float32[2, 3, 8]
%var_mean1 = var_mean(%add3, [2], correction=0, keepdim=True) : tuple
%getitem6 = getitem(%var_mean1, 0) : float32[2, 3, 1]
%getitem7 = getitem(%var_mean1, 1) : float32[2, 3, 1]
%add4 = add(%getitem6, 1e-05) : float32[2, 3, 1]
%rsqrt1 = rsqrt(%add4) : float32[2, 3, 1]
%sub1 = sub(%add3, %getitem7) : float32[2, 3, 8]
%mul2 = mul(%sub1, %rsqrt1) : float32[2, 3, 8]
%mul3 = mul(%mul2, %x7) : float32[2, 3, 8]
%add5 = add(%mul3, %x8) : float32[2, 3, 8]
return (%add5)""",  # noqa: E501
        )


class TestEncoderLayer:
    @pytest.mark.parametrize("mask", MASKS)
    def test_masks(self, mask):
        assert_same_results(LAYER, [*layer_args(), *MASKS[mask]])

    @pytest.mark.parametrize("norm_first", [False, True])
    @pytest.mark.parametrize("use_gelu", [False, True])
    def test_kinds(self, norm_first, use_gelu):
        """The order of the norms, the nonlinearity: attention and MLP are found in each."""
        after = assert_same_results(LAYER, layer_args(norm_first, use_gelu))
        inputs = after.graph.find_nodes(op="placeholder")
        found = find_regions(after.graph, inputs[1:])
        assert [region.kind.value for region in found.regions] == ["attention", "mlp"]

    def test_inductor_has_code_for_all_of_it(self):
        """It does so for what its decompositions leave, no more."""
        gm, _ = graph_of(LAYER, [*layer_args(True, True), *MASKS["keys"]])
        targets = {node.target for node in canonicalize(gm).graph.nodes if node.op == "call_function"}
        assert targets - lowerings.keys() <= {operator.getitem}

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_narrow_dtypes(self, dtype):
        gm, tensors = graph_of(LAYER, [arg.to(dtype) if isinstance(arg, Tensor) else arg for arg in layer_args()])
        (actual,), (expected,) = canonicalize(gm)(*tensors), gm(*tensors)
        assert actual.dtype is dtype
        torch.testing.assert_close(actual, expected, rtol=0, atol=16 * torch.finfo(dtype).eps)

    @pytest.mark.parametrize("mask", [[CAUSAL, None], [PADDING, 2]], ids=["no type", "other rank"])
    def test_left_alone(self, mask):
        """The operator then counts as heavy, and is named with what avoids it."""
        gm, _ = graph_of(LAYER, [*layer_args(), *mask])
        graph = canonicalize(gm).graph
        inputs = graph.find_nodes(op="placeholder")
        (node,) = [node for node in graph.nodes if node.target is LAYER]
        assert is_heavy(node)
        (entry,) = find_hidden_adds(graph, inputs[1:], find_regions(graph, inputs[1:]))
        assert entry.reason is Reason.FUSED
        assert "torch.backends.mha.set_fastpath_enabled(False)" in str(entry)
        assert "aten._transformer_encoder_layer_fwd.default" in str(entry)

    def test_empty_is_left_alone(self):
        args = layer_args()
        gm, _ = graph_of(LAYER, [args[0][:0], *args[1:]])
        assert op_counts(canonicalize(gm))["_transformer_encoder_layer_fwd"] == 1


class TestAttention:
    @pytest.mark.parametrize("mask", MASKS)
    @pytest.mark.parametrize("weights", ["none", "mean", "heads"])
    def test_masks_and_weights(self, mask, weights):
        torch.manual_seed(0)
        x, (mask, mask_type) = numbers(BATCH, LENGTH, WIDTH), MASKS[mask]
        args = [x, x, x, WIDTH, HEADS, *attention_weights(), mask, weights != "none", weights == "mean", mask_type]
        gm, tensors = graph_of(ATTENTION, args, num_results=2)
        after = canonicalize(gm)
        assert op_counts(after)["_native_multi_head_attention"] == 0
        num_compared = 1 if weights == "none" else 2  # the operator returns nothing for weights that were not asked for
        torch.testing.assert_close(after(*tensors)[:num_compared], gm(*tensors)[:num_compared])

    def test_of_three_tensors(self):
        torch.manual_seed(0)
        q, k, v = (numbers(BATCH, LENGTH, WIDTH) for _ in range(3))
        assert_same_results(ATTENTION, [q, k, v, WIDTH, HEADS, *attention_weights()], num_results=2)


class TestModels:
    """What ``torch.compile`` makes of the module."""

    @staticmethod
    def encoder(**settings: Any) -> nn.Module:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True, **settings)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()

    def test_regions(self):
        model, x = self.encoder(), torch.randn(BATCH, LENGTH, WIDTH)
        found = find(model, x, mask=CAUSAL, is_causal=True, src_key_padding_mask=PADDING)
        assert (found.kinds, found.paths) == (["attention", "mlp"] * 2, [f"layers.{i}" for i in (0, 0, 1, 1)])
        with torch.no_grad():
            expected = model(x, mask=CAUSAL, is_causal=True, src_key_padding_mask=PADDING)
            torch.testing.assert_close(found.gm(*found.traced.real_inputs)[0], expected)

    def test_stack(self):
        assert find_stacks(self.encoder(norm_first=True), torch.randn(BATCH, LENGTH, WIDTH)).kinds == ["stack"]

    def test_sizes_unknown_when_compiled(self):
        found = find(self.encoder(), torch.randn(BATCH, LENGTH, WIDTH), dynamic=True)
        assert found.kinds == ["attention", "mlp"] * 2
        assert op_counts(found.gm)["sym_size"] == 0
        with torch.no_grad():
            expected = found.traced.gm(*found.traced.real_inputs)
            torch.testing.assert_close(found.gm(*found.traced.real_inputs), expected)

    def test_trace_keeps_the_operator(self):
        """So a graph in which nothing is found is compiled as it came."""
        counts = op_counts(trace(self.encoder(), torch.randn(BATCH, LENGTH, WIDTH)).gm)
        assert counts["_transformer_encoder_layer_fwd"] == 2
