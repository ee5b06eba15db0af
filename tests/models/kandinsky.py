"""Kandinsky: sums taken in float32; text blocks told the time; video and audio beside each other; sparse attention over tiles."""

from typing import Any

import torch
from diffusers import Kandinsky5Transformer3DModel, Kandinsky6SRTransformer3DModel, Kandinsky6Transformer3DModel
from torch import Tensor, nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

CHANNELS = 4
FRAMES = 2
SIZE = 16  # of a latent frame: 64 tokens after patching
WIDTH = 32  # of a token: two heads
CONFIG = {
    "in_visual_dim": CHANNELS,
    "out_visual_dim": CHANNELS,
    "in_text_dim": 16,
    "in_text_dim2": 16,
    "time_dim": 8,
    "model_dim": WIDTH,
    "ff_dim": 4 * WIDTH,
    "num_text_blocks": 3,
    "num_visual_blocks": 3,
    "axes_dims": (4, 6, 6),
    "visual_cond": True,
}
NABLA = {
    "attention_type": "nabla",
    "attention_P": 0.6,
    "attention_wT": 3,
    "attention_wW": 1,
    "attention_wH": 1,
    "attention_add_sta": True,
    "attention_method": "topcdf",
}


def time(step: float) -> Tensor:
    return torch.tensor([1000.0 - 20 * step])


def inputs(step: float, seed: int, size: int = SIZE) -> Inputs:
    """Channels last: the latents, those of the given frame, and a mask of it."""
    return {
        "hidden_states": smooth((1, FRAMES, size, size, 2 * CHANNELS + 1), step, seed, torch.float32),
        "encoder_hidden_states": noise((1, 12, 16), seed, torch.float32),
        "pooled_projections": noise((1, 16), seed + 1, torch.float32),
        "timestep": time(step),
        "return_dict": False,
    }


def kandinsky5(**config: Any) -> nn.Module:
    """Rotated queries and keys are rounded to bfloat16 even here, which makes something of the last bits of float32.

    What comes of it is scaled down, so that it stays below the tolerance of the tests.
    """
    model = randomize(Kandinsky5Transformer3DModel(**CONFIG | config))
    for block in (*model.text_transformer_blocks, *model.visual_transformer_blocks):
        block.self_attention.out_layer.weight.div_(8)
    return model


def kandinsky5_nabla() -> nn.Module:
    model = kandinsky5(**NABLA)
    model.set_attention_backend("flex")
    return model


def kandinsky5_inputs(step: float, seed: int, size: int = SIZE) -> Inputs:
    return inputs(step, seed, size) | {
        "visual_rope_pos": [torch.arange(FRAMES), torch.arange(size // 2), torch.arange(size // 2)],
        "text_rope_pos": torch.arange(12),
    }


def nabla_inputs(step: float, seed: int) -> Inputs:
    """Attention to the tiles of 8 x 8 tokens that matter, found by their means, and always to the neighbours."""
    tiles = torch.arange(FRAMES * 4)
    return kandinsky5_inputs(step, seed, size=32) | {
        "sparse_params": {
            "sta_mask": (tiles[:, None] % 4 == tiles % 4)[None, None],
            "attention_type": "nabla",
            "to_fractal": True,
            "P": NABLA["attention_P"],
        }
    }


def kandinsky6() -> nn.Module:
    return randomize(Kandinsky6Transformer3DModel(**CONFIG, in_audio_dim=CHANNELS, out_audio_dim=CHANNELS))


def kandinsky6_inputs(step: float, seed: int) -> Inputs:
    return inputs(step, seed) | {
        "audio_hidden_states": smooth((1, 24, CHANNELS), step, seed + 2, torch.float32),
        "encoder_attention_mask": (torch.arange(12) < 9)[None],
    }


def super_resolution() -> nn.Module:
    return randomize(
        Kandinsky6SRTransformer3DModel(
            in_visual_dim=CHANNELS,
            out_visual_dim=CHANNELS,
            time_dim=8,
            model_dim=WIDTH,
            ff_dim=4 * WIDTH,
            num_visual_blocks=3,
            axes_dims=(4, 6, 6),
            nabla_threshold=0.6,
            nabla_window=(3, 1, 1),
        )
    )


def super_resolution_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": smooth((1, FRAMES, SIZE, SIZE, 2 * CHANNELS + 1), step, seed, torch.float32),
        "timestep": time(step),
        "return_dict": False,
    }


VARIANTS = (
    Variant("Kandinsky5Transformer3DModel", kandinsky5, kandinsky5_inputs),
    Variant("Kandinsky5Transformer3DModel-nabla", kandinsky5_nabla, nabla_inputs),
    Variant("Kandinsky6Transformer3DModel", kandinsky6, kandinsky6_inputs),
    Variant("Kandinsky6SRTransformer3DModel", super_resolution, super_resolution_inputs),
)
