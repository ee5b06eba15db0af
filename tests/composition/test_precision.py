"""Half precision, the clips that go with it, and weights stored in eight bits: by torchao, by diffusers, and by hand."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)

from taylorseer_fx.passes.ops import aten, packet
from tests.composition.session import ROUNDING, Session, assert_close, check_runs_plainly, first_of, short_flux, tiny_zoo
from tests.turns import in_turns
from tests.zoo import MODELS, ZooModel, dit, sd3

CLAMPS = {aten.clamp, aten.clamp_min, aten.clamp_max}


def has_clip(session: Session, kind: str) -> bool:
    return any(packet(node) in CLAMPS for node in session.backend.explain().graph(kind).graph.nodes)


# Half precision


@pytest.mark.parametrize(("dtype", "name"), in_turns(product([torch.bfloat16, torch.float16], MODELS), weeks=4))
def test_half_precision(dtype, name):
    """Every region of every model is found, and each step is right to a few units of rounding; the full steps to one or two."""
    zoo = MODELS[name](dtype)
    session = Session.of(zoo)
    outputs = session.check(ROUNDING[dtype])
    session.assert_all_found(zoo)
    for step in (0, 7):
        assert_close([outputs[step]], [first_of(zoo.model(**zoo.inputs(step)))], 2 * torch.finfo(dtype).eps)
    is_clipped = name == "flux" and dtype is torch.float16
    assert has_clip(session, "full") == is_clipped
    assert not is_clipped or has_clip(session, "forecast")


def test_float16_clip_that_bites():
    """FLUX clips its text stream in float16; with features so large that it must, forecasts are finite and right."""
    zoo = short_flux(torch.float16)
    block = zoo.model.transformer_blocks[0]
    block.ff_context.net[2].bias += 3e4
    block.norm1_context.linear.bias[-block.ff_context.net[2].out_features :] = 4.0  # the gate of that MLP
    peaks: list[float] = []
    handle = block.register_forward_hook(lambda module, args, output: peaks.append(float(output[0].abs().max())))
    zoo.model(**zoo.inputs(3))
    handle.remove()
    assert peaks == [65504.0]
    Session.of(zoo).check(ROUNDING[torch.float16])


# Weights of eight bits


@pytest.mark.parametrize(
    ("make", "config"), in_turns(product([dit, short_flux], [Int8WeightOnlyConfig, Float8WeightOnlyConfig]), weeks=4)
)
def test_weight_only(make, config):
    """Weights stored in eight bits and used in float32: all regions, and right to the rounding of float32."""
    zoo = make()
    quantize_(zoo.model, config())
    session = Session.of(zoo)
    session.check()
    session.assert_all_found(zoo)


@pytest.mark.inductor
@pytest.mark.turn(5, 6)
def test_int8_weight_only_through_inductor():
    zoo = tiny_zoo()
    quantize_(zoo.model, Int8WeightOnlyConfig())
    session = Session.of(zoo, compiler="inductor")
    session.check()
    session.assert_all_found(zoo)


@pytest.mark.parametrize("config", [Int8DynamicActivationInt8WeightConfig, Float8DynamicActivationFloat8WeightConfig])
def test_dynamic_activations(config):
    """Activations quantised on the fly: the products are ``_int_mm`` or ``_scaled_mm``, heavy like any other.

    In bfloat16, where decomposing an operator rounds as the operator itself. In float32 it does not, and a last bit there can
    become a whole step of the eight bits, with plain ``torch.compile`` too.
    """
    zoo = dit(torch.bfloat16)
    try:
        quantize_(zoo.model, config())
    except AssertionError as error:
        pytest.skip(f"torchao: {error}")
    session = Session.of(zoo)
    session.check(ROUNDING[torch.bfloat16])
    session.assert_all_found(zoo)
    forecast = session.backend.explain().graph("forecast").graph
    full = session.backend.explain().graph("full").graph
    low = {aten._int_mm, aten._scaled_mm}
    assert sum(packet(node) in low for node in full.nodes) >= sum(packet(node) in low for node in forecast.nodes) + 12


class StoredLinear(nn.Module):
    """A linear layer whose weight lies in float8 and is widened when it is used."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias)


def store_linears(zoo: ZooModel) -> None:
    for module in list(zoo.model.transformer_blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, StoredLinear(child))


@pytest.mark.parametrize("make", in_turns([dit, sd3], weeks=2))
def test_float8_storage(make):
    """Weights stored in float8 and cast in the forward: right, and a forecast step does not even read those it needs not."""
    zoo = make(torch.bfloat16)
    store_linears(zoo)
    session = Session.of(zoo)
    session.check(ROUNDING[torch.bfloat16])
    session.assert_all_found(zoo)

    def num_stored(kind: str) -> int:
        inputs = session.backend.explain().graph(kind).graph.find_nodes(op="placeholder")
        return sum(node.meta["val"].dtype is torch.float8_e4m3fn for node in inputs)

    modulations = sum(name.endswith(("norm1.linear", "norm1_context.linear")) for name, _ in zoo.model.named_modules())
    assert num_stored("full") > 2 * num_stored("forecast")
    assert num_stored("forecast") <= modulations + 2 * len(zoo.model.transformer_blocks)


def test_layerwise_casting():
    """Diffusers' hooks cast each layer around its own forward, and Dynamo breaks the graph at each: nothing can be forecast.

    (Dynamo does not trace ``module.to()``, so no backend gets more than a layer at a time, with plain ``torch.compile`` too.)
    """
    zoo = dit(torch.bfloat16)
    zoo.model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    check_runs_plainly(zoo, 2 * torch.finfo(torch.bfloat16).eps)
