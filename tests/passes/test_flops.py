"""FLOPs of a graph are torch's own count of the same model, run eagerly."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from taylorseer_fx.passes.flops import count_flops, node_flops
from tests.graphs import hand_made, trace, two_layers

aten, prims = torch.ops.aten, torch.ops.prims


def counted_eagerly(model: nn.Module, *args: Tensor, **kwargs: object) -> int:
    """Attention goes through its plain form, since torch counts none for the fused kernel of the CPU."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(*args, **kwargs)
    return counter.get_total_flops()


class Called(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def test_tiny_dit():
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=2,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=10,
    ).eval()
    inputs = {
        "hidden_states": torch.randn(2, 2, 4, 4),
        "timestep": torch.tensor([3, 3]),
        "class_labels": torch.tensor([1, 2]),
        "return_dict": False,
    }
    assert count_flops(trace(model, **inputs).gm.graph) == counted_eagerly(model, **inputs) > 0


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        pytest.param(lambda a, b: a @ b, [(3, 4), (4, 5)], id="mm"),
        pytest.param(lambda a, b: a @ b, [(2, 3, 4), (2, 4, 5)], id="bmm"),
        pytest.param(lambda a, w, b: F.linear(a, w, b), [(2, 3, 4), (5, 4), (5,)], id="linear"),
        pytest.param(F.scaled_dot_product_attention, [(1, 2, 6, 4)] * 3, id="attention"),
        pytest.param(F.scaled_dot_product_attention, [(1, 2, 6, 4), (1, 2, 9, 4), (1, 2, 9, 4)], id="cross-attention"),
        pytest.param(lambda x, w: F.conv2d(x, w, padding=1), [(1, 4, 8, 8), (6, 4, 3, 3)], id="convolution"),
        pytest.param(lambda x, w: F.conv2d(x, w, groups=4), [(1, 4, 8, 8), (4, 1, 3, 3)], id="depthwise"),
    ],
)
def test_operators(function, shapes):
    args = [torch.randn(shape) for shape in shapes]
    model = Called(function)
    assert count_flops(trace(model, *args).gm.graph) == counted_eagerly(model, *args) > 0


def test_two_a_multiply_add():
    """3x4 times 4x5: 3 * 4 * 5 multiply-adds."""
    assert count_flops(hand_made(lambda emit, a, b: [emit(aten.mm.default, a, b)], (3, 4), (4, 5)).graph) == 2 * 3 * 4 * 5


def test_quantised_products_count_as_any():
    """Torch has no formula for them, and a model that it counts nothing of would seem to leave nothing to save."""

    def build(emit, a, b):
        quantised = (emit(prims.convert_element_type.default, x, torch.int8) for x in (a, b))
        return [emit(aten._int_mm.default, *quantised)]

    assert count_flops(hand_made(build, (32, 16), (16, 8)).graph) == 2 * 32 * 16 * 8


def test_elementwise_work_counts_nothing():
    gm = hand_made(lambda emit, a: [emit(aten.exp.default, emit(aten.mul.Tensor, a, 2))], (3, 4))
    assert [node_flops(node) for node in gm.graph.nodes] == [0, 0, 0, 0]


def test_additive_over_layers():
    model, args = two_layers()
    assert count_flops(trace(model, *args).gm.graph) == 2 * counted_eagerly(model.first, *args)
