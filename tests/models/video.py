"""Videos from one trunk: Allegro and Latte attend to the text, Cosmos through a gate, Mochi jointly and between norms."""

from functools import partial
from math import log
from typing import Any

import torch
from diffusers import (
    AllegroTransformer3DModel,
    CosmosTransformer3DModel,
    LatteTransformer3DModel,
    MochiTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from torch import Tensor, nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

CHANNELS = 4
FRAMES = 2
SIZE = 16  # of a latent frame: 64 tokens after patching
TEXT = (1, 12, 16)


def video(step: float, seed: int, channels: int = CHANNELS, frames: int = FRAMES) -> Tensor:
    return smooth((1, channels, frames, SIZE, SIZE), step, seed, torch.float32)


def text_mask() -> Tensor:
    return (torch.arange(TEXT[1]) < TEXT[1] - 3)[None].long()


def allegro() -> nn.Module:
    return randomize(
        AllegroTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=24,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=3,
            cross_attention_dim=48,
            caption_channels=16,
            sample_width=SIZE,
            sample_height=SIZE,
        )
    )


def allegro_rotary() -> tuple[tuple[tuple[Tensor, Tensor], ...], tuple[Tensor, ...]]:
    """Cosines and sines along each axis, and where on it each token is."""
    side = SIZE // 2
    *waves, frames, rows, columns = get_3d_rotary_pos_embed_allegro(24, ((0, 0), (side, side)), (side, side), FRAMES)
    grid = torch.cartesian_prod(frames.long(), rows.long(), columns.long())
    return tuple(waves), tuple(axis[None] for axis in grid.unbind(-1))


def allegro_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": video(step, seed),
        "encoder_hidden_states": noise((1, 1, *TEXT[1:]), seed, torch.float32),
        "timestep": torch.tensor([int(1000 - 20 * step)]),
        "encoder_attention_mask": text_mask(),
        "image_rotary_emb": allegro_rotary(),
        "return_dict": False,
    }


def latte() -> nn.Module:
    return randomize(
        LatteTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=CHANNELS,
            out_channels=2 * CHANNELS,
            num_layers=3,
            cross_attention_dim=32,
            caption_channels=16,
            attention_bias=True,
            sample_size=SIZE,
            patch_size=2,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            video_length=4,
        )
    )


def latte_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": video(step, seed, frames=4),
        "encoder_hidden_states": noise(TEXT, seed, torch.float32),
        "timestep": torch.tensor([int(1000 - 20 * step)]),
        "return_dict": False,
    }


def cosmos(**config: Any) -> nn.Module:
    return randomize(
        CosmosTransformer3DModel(
            **{
                "in_channels": CHANNELS,
                "out_channels": CHANNELS,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 3,
                "text_embed_dim": 16,
                "adaln_lora_dim": 4,
                "max_size": (4, 32, 32),
                "concat_padding_mask": False,  # one more channel, resized with torchvision, which is no dependency of ours
            }
            | config
        )
    )


def cosmos_inputs(step: float, seed: int) -> Inputs:
    """Time is a quarter of the logarithm of the noise level, 80 to 0.002: it ends below zero."""
    return {
        "hidden_states": video(step, seed),
        "timestep": torch.tensor([0.25 * (log(80) + (log(0.002) - log(80)) * step / 50)]),
        "encoder_hidden_states": noise(TEXT, seed, torch.float32),
        "fps": 16,
        "return_dict": False,
    }


def cosmos_world_inputs(step: float, seed: int) -> Inputs:
    """The first frame is given: every frame has its own time, and a channel tells the given one."""
    given = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 4, 1, 1)
    return cosmos_inputs(step, seed) | {
        "hidden_states": video(step, seed, frames=4),
        "timestep": given * 0.0001 + (1 - given) * (1 - step / 50),
        "condition_mask": given.expand(1, 1, 4, SIZE, SIZE).contiguous(),
    }


def cosmos_transfer_inputs(step: float, seed: int) -> Inputs:
    texts, image = noise((1, 12, 24), seed, torch.float32), noise((1, 9, 24), seed + 1, torch.float32)
    return cosmos_inputs(step, seed) | {"encoder_hidden_states": (texts, image), "timestep": torch.tensor([1 - step / 50])}


def mochi() -> nn.Module:
    return randomize(
        MochiTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=4,  # the last one leaves the text alone
            pooled_projection_dim=16,
            in_channels=CHANNELS,
            text_embed_dim=16,
            time_embed_dim=8,
            max_sequence_length=12,
        )
    )


def mochi_inputs(step: float, seed: int) -> Inputs:
    """Time runs upwards."""
    return {
        "hidden_states": video(step, seed),
        "encoder_hidden_states": noise(TEXT, seed, torch.float32),
        "timestep": torch.tensor([20.0 * step]),
        "encoder_attention_mask": text_mask().bool(),
        "return_dict": False,
    }


VARIANTS = (
    Variant("AllegroTransformer3DModel", allegro, allegro_inputs),
    Variant("LatteTransformer3DModel", latte, latte_inputs),
    Variant("CosmosTransformer3DModel", cosmos, cosmos_inputs),
    Variant(
        "CosmosTransformer3DModel-world",
        partial(cosmos, in_channels=CHANNELS + 1, extra_pos_embed_type=None, adaln_lora_dim=2),
        cosmos_world_inputs,
    ),
    Variant(
        "CosmosTransformer3DModel-transfer",
        partial(
            cosmos,
            extra_pos_embed_type=None,
            use_crossattn_projection=True,
            crossattn_proj_in_channels=24,
            encoder_hidden_states_channels=16,
            img_context_dim_in=24,
            img_context_dim_out=32,
        ),
        cosmos_transfer_inputs,
    ),
    Variant(
        "MochiTransformer3DModel",
        mochi,
        mochi_inputs,
        fullgraph=True,
        attends="the prompt is pooled by attention",
        ascending=True,
    ),
)
