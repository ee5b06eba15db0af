"""HunyuanVideo and its kin: double blocks, then single blocks; a small transformer, told the time too, refines the text."""

from functools import partial
from typing import Any

import torch
from diffusers import (
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    MotifVideoTransformer3DModel,
)
from torch import Tensor, nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

CHANNELS = 4
FRAMES = 2
SIZE = 16  # of a latent frame: 64 tokens after patching
TEXT = 12
WIDTH = 16  # of a text token
CONFIG = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 3,
    "patch_size": 2,
    "text_embed_dim": WIDTH,
    "rope_axes_dim": (4, 6, 6),
}
SINGLE = {"num_single_layers": 3, "num_refiner_layers": 3, "pooled_projection_dim": WIDTH}


def time(step: float) -> Tensor:
    return torch.tensor([1000.0 - 20 * step])


def text_mask(length: int = TEXT) -> Tensor:
    return (torch.arange(length) < length - 3)[None].long()


def hunyuan(**config: Any) -> nn.Module:
    return randomize(HunyuanVideoTransformer3DModel(**CONFIG | SINGLE | config))


def inputs(step: float, seed: int, channels: int = CHANNELS, guided: bool = True) -> Inputs:
    return {
        "hidden_states": smooth((1, channels, FRAMES, SIZE, SIZE), step, seed, torch.float32),
        "timestep": time(step),
        "encoder_hidden_states": noise((1, TEXT, WIDTH), seed, torch.float32),
        "encoder_attention_mask": text_mask(),
        "pooled_projections": noise((1, WIDTH), seed + 1, torch.float32),
        "guidance": torch.tensor([6000.0]) if guided else None,
        "return_dict": False,
    }


def hunyuan15() -> nn.Module:
    return randomize(
        HunyuanVideo15Transformer3DModel(**CONFIG, num_refiner_layers=3, text_embed_2_dim=WIDTH, image_embed_dim=WIDTH)
    )


def hunyuan15_inputs(step: float, seed: int) -> Inputs:
    """Two text encoders, each with a mask, and an image encoder whose zeros would mean text alone."""
    return {
        "hidden_states": smooth((1, CHANNELS, FRAMES, SIZE, SIZE), step, seed, torch.float32),
        "timestep": time(step),
        "encoder_hidden_states": noise((1, TEXT, WIDTH), seed, torch.float32),
        "encoder_attention_mask": text_mask(),
        "encoder_hidden_states_2": noise((1, 6, WIDTH), seed + 1, torch.float32),
        "encoder_attention_mask_2": text_mask(6),
        "image_embeds": noise((1, 5, WIDTH), seed + 2, torch.float32),
        "return_dict": False,
    }


def framepack() -> nn.Module:
    return randomize(
        HunyuanVideoFramepackTransformer3DModel(
            **CONFIG | SINGLE, has_image_proj=True, image_proj_dim=WIDTH, has_clean_x_embedder=True
        )
    )


def framepack_inputs(step: float, seed: int) -> Inputs:
    """The frames to denoise, and past frames at three scales in the same sequence."""

    def past(frames: int, offset: int) -> Tensor:
        return noise((1, CHANNELS, frames, SIZE, SIZE), seed + offset, torch.float32)

    first, now, short, middle, long = torch.arange(1 + FRAMES + 1 + 2 + 16).split([1, FRAMES, 1, 2, 16])
    return inputs(step, seed) | {
        "image_embeds": noise((1, 5, WIDTH), seed + 2, torch.float32),
        "indices_latents": now,
        "latents_clean": past(2, 3),
        "indices_latents_clean": torch.cat([first, short]),
        "latents_history_2x": past(2, 4),
        "indices_latents_history_2x": middle,
        "latents_history_4x": past(16, 5),
        "indices_latents_history_4x": long,
    }


def framepack_batch_inputs(step: float, seed: int) -> Inputs:
    """Two prompts at once, whose lengths make a mask; a single prompt is cut to its length."""

    def twice(value: Any) -> Any:
        return torch.cat([value, value.roll(1, -1)]) if isinstance(value, Tensor) else value

    single = framepack_inputs(step, seed)
    shared = {name: value for name, value in single.items() if name.startswith("indices")}
    masks = torch.cat([text_mask(), torch.ones(1, TEXT, dtype=torch.long)])
    return {name: twice(value) for name, value in single.items()} | shared | {"encoder_attention_mask": masks}


def motif(**config: Any) -> nn.Module:
    return randomize(MotifVideoTransformer3DModel(**CONFIG | config))


def motif_inputs(step: float, seed: int, image: bool = False) -> Inputs:
    return {
        "hidden_states": smooth((1, CHANNELS, FRAMES, SIZE, SIZE), step, seed, torch.float32),
        "timestep": time(step),
        "encoder_hidden_states": noise((1, TEXT, WIDTH), seed, torch.float32),
        "encoder_attention_mask": text_mask(),
        "image_embeds": noise((1, 5, WIDTH), seed + 1, torch.float32) if image else None,
        "return_dict": False,
    }


VARIANTS = (
    Variant("HunyuanVideoTransformer3DModel", hunyuan, inputs),
    Variant("HunyuanVideoTransformer3DModel-token-replace", partial(hunyuan, image_condition_type="token_replace"), inputs),
    Variant(
        "HunyuanVideoTransformer3DModel-latent-concat",
        partial(hunyuan, in_channels=2 * CHANNELS + 1, image_condition_type="latent_concat", guidance_embeds=False),
        partial(inputs, channels=2 * CHANNELS + 1, guided=False),
    ),
    Variant("HunyuanVideo15Transformer3DModel", hunyuan15, hunyuan15_inputs, broken="asks whether the image is zeros"),
    Variant(
        "HunyuanVideoFramepackTransformer3DModel",
        framepack,
        framepack_inputs,
        broken="cuts the text to its length; captured in one graph it has a size that nobody knows, and tracing takes minutes",
    ),
    Variant("HunyuanVideoFramepackTransformer3DModel-batch", framepack, framepack_batch_inputs, fullgraph=True),
    Variant("MotifVideoTransformer3DModel", partial(motif, num_single_layers=3), motif_inputs),
    Variant(
        "MotifVideoTransformer3DModel-decoder",
        partial(
            motif,
            num_single_layers=6,
            num_decoder_layers=3,
            image_embed_dim=WIDTH,
            enable_text_cross_attention_dual=True,
            enable_text_cross_attention_single=True,
        ),
        partial(motif_inputs, image=True),
    ),
)
