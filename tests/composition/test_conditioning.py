"""Conditions that enter inside the stack: ControlNet residuals between the blocks, and an IP adapter's second attention."""

import pytest
import torch
from torch import Tensor

from tests.composition.session import NUM_STEPS, ROUNDING, Session, assert_close, assert_differ
from tests.turns import in_turns
from tests.zoo import ZooModel, flux, noise, pixart, sd3, smooth

# Model, its input for the residuals, how many there are (fewer than blocks: each serves several).
CONTROLS = [
    (flux, {"controlnet_block_samples": 1, "controlnet_single_block_samples": 2}),
    (flux, {"controlnet_block_samples": 2, "controlnet_blocks_repeat": True}),
    (sd3, {"block_controlnet_hidden_states": 1}),
]


def residuals(count: int, step: float) -> list[Tensor]:
    """What a ControlNet gives each block: it is run every step, and moves with the step as the image does."""
    return [smooth((2, 16, 16), step, 50 + i, torch.float32) for i in range(count)]


@pytest.mark.parametrize(("make", "controls"), in_turns(CONTROLS, weeks=3))
def test_controlnet(make, controls):
    """Residuals of a ControlNet are added at every step, forecast or not: regions stay what they are, and nothing is rejected."""
    zoo = make()
    inputs = {
        name: count if isinstance(count, bool) else lambda step, count=count: residuals(count, step)
        for name, count in controls.items()
    }
    session = Session.of(zoo, **inputs)
    outputs = session.check()
    session.assert_all_found(zoo)
    assert_differ(outputs, [zoo.model(**zoo.inputs(step))[0] for step in range(NUM_STEPS)])


def test_controlnet_is_not_forecast():
    """The residuals of a forecast step are that step's own: a jump in them shows at once, as the reference has it."""
    zoo = sd3()

    def jumping(step: float) -> list[Tensor]:
        return [residual * (5 if step == 6 else 1) for residual in residuals(3, step)]

    session = Session.of(zoo, block_controlnet_hidden_states=jumping)
    outputs = session.check()
    steady = Session.of(zoo, block_controlnet_hidden_states=lambda step: residuals(3, step)).expected()
    assert_differ([outputs[6]], [steady[6]])
    assert_close(outputs[:6], steady[:6], ROUNDING[torch.float32])


def ip_adapter(zoo: ZooModel) -> dict[str, dict[str, Tensor]]:
    """Weights of an IP adapter for the double blocks: a projection of image embeddings to four tokens, keys and values."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    projection = {"proj.weight": random(64, 12), "proj.bias": random(64), "norm.weight": 1 + random(16), "norm.bias": random(16)}
    layers = {}
    for i in range(len(zoo.model.transformer_blocks)):
        for part in ("to_k_ip", "to_v_ip"):
            layers |= {f"{i}.{part}.weight": random(16, 16), f"{i}.{part}.bias": random(16)}
    return {"image_proj": projection, "ip_adapter": layers}


@pytest.mark.turn(1, 3)
def test_ip_adapter():
    """Image tokens attended to in an attention of their own, whose output is added to the stream without a gate, behind the MLP.

    The reference forecasts it too: it is the third tensor that the attention module returns.
    """
    zoo = flux()
    plain = [zoo.model(**zoo.inputs(step))[0] for step in range(NUM_STEPS)]
    zoo.model._load_ip_adapter_weights([ip_adapter(zoo)], low_cpu_mem_usage=False)
    image = {"ip_adapter_image_embeds": [noise((2, 1, 12), 7, torch.float32)]}
    session = Session.of(zoo, joint_attention_kwargs=lambda step: dict(image))  # the model takes the embeddings out of it
    assert_differ(session.check(), plain)
    report = session.backend.explain()
    assert sum(len(region.features) for region in report.regions) == zoo.num_features + len(zoo.model.transformer_blocks)
    assert report.rejected == ()


@pytest.mark.parametrize("as_bias", [False, True])
def test_text_masks(as_bias):
    """PixArt's mask of the text tokens, as zeros and ones or as the bias added to the scores."""
    zoo = pixart()
    mask = torch.ones(2, 6)
    mask[0, 4:] = 0
    session = Session.of(zoo, encoder_attention_mask=((1 - mask) * -10000.0)[:, None] if as_bias else mask)
    outputs = session.check()
    session.assert_all_found(zoo)
    unmasked = [zoo.model(**zoo.inputs(step))[0] for step in range(NUM_STEPS)]
    assert_differ([output[0] for output in outputs], [output[0] for output in unmasked])
