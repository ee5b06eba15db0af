"""GGUF weights through diffusers' own layers: packed in bytes, whose scales are a view of them as another dtype, unpacked in the
forward.
"""

import gguf
import pytest
import torch
from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter
from gguf import GGMLQuantizationType
from torch import Tensor, fx, nn

from tests.composition.session import Session, assert_close
from tests.zoo import TinyAttention, ZooModel, randomize, smooth

WIDTH = 256  # a block of Q4_K
Q8_0, Q4_0, Q4_K = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_K


def packed(weight: Tensor, kind: GGMLQuantizationType) -> Tensor:
    """``weight`` in bytes. Gguf packs no Q4_K: a scale, a minimum, 12 bytes of finer ones and 128 of numbers are made up."""
    if kind is not Q4_K:
        return torch.from_numpy(gguf.quantize(weight.numpy(), kind))
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1e-4, 7e-4], dtype=torch.float16).view(torch.uint8).expand(*weight.shape[:-1], -1)
    return torch.cat([scales, torch.randint(0, 256, (*weight.shape[:-1], 140), dtype=torch.uint8, generator=generator)], -1)


def as_gguf(linear: nn.Linear, kind: GGMLQuantizationType) -> GGUFLinear:
    layer = GGUFLinear(linear.in_features, linear.out_features, bias=True, compute_dtype=torch.float32)
    layer.weight = GGUFParameter(packed(linear.weight.detach(), kind), quant_type=kind)
    layer.bias = linear.bias
    return layer


class Model(nn.Module):
    """``x + gate(t) * attention(x)``, then ``x + gate(t) * mlp(x)``, then a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, -2, WIDTH // 2))
        self.gate, self.output = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.attention = TinyAttention(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        phase = timestep[:, None] * self.frequencies
        gate = self.gate(torch.cat([phase.sin(), phase.cos()], dim=-1))[:, None]
        x = x + gate * self.attention(x)
        return self.output(x + gate * self.mlp(x))

    def pack(self, position: str, kind: GGMLQuantizationType) -> None:
        if position == "mlp":
            self.mlp[0], self.mlp[2] = (as_gguf(layer, kind) for layer in (self.mlp[0], self.mlp[2]))
        else:
            setattr(self, position, as_gguf(getattr(self, position), kind))


def packed_zoo(kinds: tuple[GGMLQuantizationType, ...]) -> ZooModel:
    """With layers of each kind in the position of the same place."""
    model = Model()
    randomize(model)
    for position, kind in zip(("mlp", "gate", "output"), kinds, strict=True):
        model.pack(position, kind)

    def inputs(step: float, seed: int = 0) -> dict[str, Tensor]:
        return {"x": smooth((2, 4, WIDTH), step, seed, torch.float32), "timestep": torch.full((2,), 1000.0 - 20 * step)}

    return ZooModel("gguf", model, inputs, [model.attention, model.mlp], {"attention": 1, "mlp": 1}, 2)


@pytest.mark.parametrize(
    "kinds", [(Q8_0, Q4_0, Q4_K), (Q4_K, Q8_0, Q4_0), (Q4_0, Q4_K, Q8_0)], ids=lambda kinds: "-".join(kind.name for kind in kinds)
)
def test_each_kind_in_each_position(kinds):
    """Found, forecast and right wherever the packed weights are; of the MLP's, a forecast step reads not a byte."""
    zoo = packed_zoo(kinds)
    session = Session.of(zoo)
    compiled = session.compiled
    session.compiled = lambda **inputs: plain(compiled(**inputs))
    outputs = session.check()
    assert_close([outputs[step] for step in (0, 7)], [zoo.model(**zoo.inputs(step)) for step in (0, 7)], 1e-5)
    session.assert_all_found(zoo)
    report = session.backend.explain()
    assert (num_packed(report.graph("full")), num_packed(report.graph("forecast"))) == (4, 2)


def plain(output: Tensor) -> Tensor:
    """Under Dynamo, whatever the backend, the class of the weight clings to all that is computed with it."""
    with torch._C.DisableTorchFunctionSubclass():
        return output.as_subclass(Tensor)


def num_packed(gm: fx.GraphModule) -> int:
    return sum(node.meta["val"].dtype is torch.uint8 for node in gm.graph.find_nodes(op="placeholder"))
