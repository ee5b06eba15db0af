"""CogVideoX and its kin: attention and MLP over text and video tokens at once, both streams gated."""

from functools import partial
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel, ConsisIDTransformer3DModel, EasyAnimateTransformer3DModel
from torch import Tensor, nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

CHANNELS = 4
FRAMES = 2
SIZE = 16  # of a latent frame: 64 tokens after patching
HEAD = 16
TEXT = (1, 8, 16)
CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": HEAD,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "time_embed_dim": 8,
    "text_embed_dim": 16,
    "num_layers": 3,
    "sample_width": SIZE,
    "sample_height": SIZE,
    "sample_frames": 5,  # two latent frames
    "max_text_seq_length": 8,
}
FACE = {
    "num_attention_heads": 3,  # the face's keys and values are two thirds as wide as the stream
    "is_train_face": True,
    "cross_attn_interval": 1,
    "cross_attn_dim_head": 8,
    "cross_attn_num_heads": 2,
    "LFE_id_dim": 8,
    "LFE_vit_dim": 8,
    "LFE_depth": 2,
    "LFE_dim_head": 4,
    "LFE_num_heads": 2,
    "LFE_num_id_token": 2,
    "LFE_num_querie": 4,
    "LFE_output_dim": 32,
    "LFE_num_scale": 2,
}


def time(step: float) -> Tensor:
    return torch.tensor([int(1000 - 20 * step)])


def rotary(tokens: int) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(tokens), torch.logspace(0, -2, HEAD // 2)).repeat_interleave(2, dim=1)
    return angles.cos(), angles.sin()


def cogvideo(**config: Any) -> nn.Module:
    return randomize(CogVideoXTransformer3DModel(**CONFIG | config))


def inputs(step: float, seed: int, frames: int = FRAMES) -> Inputs:
    return {
        "hidden_states": smooth((1, frames, CHANNELS, SIZE, SIZE), step, seed, torch.float32),
        "encoder_hidden_states": noise(TEXT, seed, torch.float32),
        "timestep": time(step),
        "return_dict": False,
    }


def rotary_inputs(step: float, seed: int) -> Inputs:
    return inputs(step, seed) | {"image_rotary_emb": rotary(FRAMES * SIZE * SIZE // 4)}


def ofs_inputs(step: float, seed: int) -> Inputs:
    """CogVideoX 1.5: patches of two frames, an embedding of a constant beside the time's."""
    return inputs(step, seed, frames=4) | {"image_rotary_emb": rotary(2 * SIZE * SIZE // 4), "ofs": torch.full((1,), 2.0)}


def face_inputs(step: float, seed: int) -> Inputs:
    return rotary_inputs(step, seed) | {
        "id_cond": noise((1, 8), seed + 1, torch.float32),
        "id_vit_hidden": [noise((1, 5, 8), seed + 2 + i, torch.float32) for i in range(2)],
    }


def easyanimate() -> nn.Module:
    """Three blocks with weights of their own for the text, then three that share the video's."""
    return randomize(
        EasyAnimateTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=HEAD,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            patch_size=2,
            num_layers=6,
            mmdit_layers=3,
            time_embed_dim=8,
            text_embed_dim=16,
            after_norm=True,
        )
    )


def easyanimate_inputs(step: float, seed: int) -> Inputs:
    return inputs(step, seed) | {"hidden_states": smooth((1, CHANNELS, FRAMES, SIZE, SIZE), step, seed, torch.float32)}


VARIANTS = (
    Variant("CogVideoXTransformer3DModel", cogvideo, inputs),
    Variant(
        "CogVideoXTransformer3DModel-learned",
        partial(cogvideo, use_rotary_positional_embeddings=True, use_learned_positional_embeddings=True),
        rotary_inputs,
    ),
    Variant(
        "CogVideoXTransformer3DModel-ofs",
        partial(cogvideo, use_rotary_positional_embeddings=True, patch_size_t=2, ofs_embed_dim=8, patch_bias=False),
        ofs_inputs,
    ),
    Variant(
        "ConsisIDTransformer3DModel",
        lambda: randomize(ConsisIDTransformer3DModel(**CONFIG | FACE, use_rotary_positional_embeddings=True)),
        face_inputs,
    ),
    Variant("EasyAnimateTransformer3DModel", easyanimate, easyanimate_inputs),
)
