"""Wan and its kin: gated self-attention, ungated cross-attention (twice in one branch with image tokens) and gated MLP."""

from functools import partial
from typing import Any

import torch
from diffusers import (
    ChronoEditTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from torch import Tensor, nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

CHANNELS = 4
FRAMES = 2
SIZE = 16  # of a latent frame: 64 tokens after patching
WIDTH = 24  # of a token: two heads
CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": WIDTH // 2,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 4 * WIDTH,
    "num_layers": 3,
    "rope_max_seq_len": 32,
}
IMAGE = {"image_dim": 16, "added_kv_proj_dim": WIDTH}
IMAGE_TEXT_LENGTH = 512  # the attention processor takes the last 512 tokens for the text


def build(cls: type[nn.Module], **config: Any) -> nn.Module:
    return randomize(cls(**CONFIG | config))


def time(step: float) -> Tensor:
    return torch.tensor([int(1000 - 20 * step)])


def inputs(step: float, seed: int, channels: int = CHANNELS, frames: int = FRAMES, text_length: int = 12) -> Inputs:
    return {
        "hidden_states": smooth((1, channels, frames, SIZE, SIZE), step, seed, torch.float32),
        "timestep": time(step),
        "encoder_hidden_states": noise((1, text_length, 16), seed, torch.float32),
        "return_dict": False,
    }


def image_inputs(step: float, seed: int, **shape: int) -> Inputs:
    image = noise((1, 9, 16), seed + 1, torch.float32)
    return inputs(step, seed, text_length=IMAGE_TEXT_LENGTH, **shape) | {"encoder_hidden_states_image": image}


def ti2v_inputs(step: float, seed: int) -> Inputs:
    """The first frame is the given image: its tokens stay at time 0."""
    frames = 4
    times = time(step).repeat(1, frames * SIZE * SIZE // 4)
    times[:, : SIZE * SIZE // 4] = 0
    return inputs(step, seed, frames=frames) | {"timestep": times}


def vace_inputs(step: float, seed: int) -> Inputs:
    return inputs(step, seed) | {
        "control_hidden_states": noise((1, 8, FRAMES, SIZE, SIZE), seed + 1, torch.float32),
        "control_hidden_states_scale": torch.tensor([1.0, 0.7]),
    }


def animate() -> nn.Module:
    return build(
        WanAnimateTransformer3DModel,
        in_channels=2 * CHANNELS + 4,
        latent_channels=CHANNELS,
        motion_encoder_channel_sizes={"4": 8, "8": 8},
        motion_encoder_size=8,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=8,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=1,
        motion_encoder_batch_size=9,
        **IMAGE,
    )


def animate_inputs(step: float, seed: int) -> Inputs:
    """Nine frames of a face become three, and one of zeros before them: as many as the latents have."""
    return image_inputs(step, seed, channels=2 * CHANNELS + 4, frames=4) | {
        "pose_hidden_states": noise((1, CHANNELS, 3, SIZE, SIZE), seed + 2, torch.float32),
        "face_pixel_values": noise((1, 3, 9, 8, 8), seed + 3, torch.float32),
    }


def forcing_inputs(step: float, seed: int) -> Inputs:
    """Every frame has its own time, the later frames following behind."""
    times = torch.stack([time(step), time(0.9 * step)], dim=1)
    return inputs(step, seed) | {"timestep": times, "enable_diffusion_forcing": True, "fps": [0]}


VARIANTS = (
    Variant("WanTransformer3DModel-t2v", partial(build, WanTransformer3DModel), inputs),
    Variant("WanTransformer3DModel-i2v", partial(build, WanTransformer3DModel, **IMAGE), image_inputs),
    Variant("WanTransformer3DModel-ti2v", partial(build, WanTransformer3DModel, ffn_dim=20 * WIDTH), ti2v_inputs),
    Variant(
        "WanVACETransformer3DModel",
        partial(build, WanVACETransformer3DModel, vace_layers=[0, 2], vace_in_channels=8),
        vace_inputs,
    ),
    Variant("WanAnimateTransformer3DModel", animate, animate_inputs),
    Variant(
        "ChronoEditTransformer3DModel",
        partial(build, ChronoEditTransformer3DModel, rope_temporal_skip_len=8, **IMAGE),
        image_inputs,
    ),
    Variant("SkyReelsV2Transformer3DModel", partial(build, SkyReelsV2Transformer3DModel), inputs),
    Variant(
        "SkyReelsV2Transformer3DModel-diffusion-forcing",
        partial(build, SkyReelsV2Transformer3DModel, inject_sample_info=True, num_frame_per_block=2),
        forcing_inputs,
    ),
)
