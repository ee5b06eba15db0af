"""The fashion model: a plain diffusers ``FluxTransformer2DModel``, 2 M parameters, 49 image and 4 text tokens.

Nothing is learned outside the transformer. A class is given as FLUX gets a prompt, as text tokens and a pooled vector, which are
fixed one-hot vectors here; a picture is packed into tokens as ``FluxPipeline`` packs latents.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn.functional import one_hot, pixel_shuffle, pixel_unshuffle

from taylorseer_fx.half_weights import load_half

WEIGHTS_PATH = Path(__file__).with_name("fashion_flux.safetensors")

CLASS_NAMES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
NUM_CLASSES = len(CLASS_NAMES)
NULL_CLASS = NUM_CLASSES  # "no class given": the empty prompt

IMAGE_SIZE, PATCH = 28, 4  # pixels
NUM_SIDE = IMAGE_SIZE // PATCH
NUM_TEXT_TOKENS = 4

FASHION_CONFIG: dict[str, Any] = {
    "patch_size": 1,  # of packed latents: a token is 4x4 pixels
    "in_channels": PATCH * PATCH,
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": NUM_CLASSES + 1 + NUM_TEXT_TOKENS,
    "pooled_projection_dim": NUM_CLASSES + 1,
    "guidance_embeds": False,
    "axes_dims_rope": (4, 14, 14),
}


def build_fashion_model() -> FluxTransformer2DModel:
    """The architecture with fresh weights, in evaluation mode (nothing in it tells the two modes apart)."""
    return FluxTransformer2DModel(**FASHION_CONFIG).eval()


def load_fashion_model() -> FluxTransformer2DModel:
    """The trained model in float32."""
    return load_half(build_fashion_model(), WEIGHTS_PATH)


def class_inputs(labels: Tensor) -> dict[str, Tensor]:
    """The model's inputs that say what to draw and where its tokens are.

    Args:
        labels: int64 ``[n]``, classes 0 to 9, or ``NULL_CLASS``.

    Returns:
        float32 ``encoder_hidden_states [n, 4, 15]`` (the class, then the token's own place among the four),
        ``pooled_projections [n, 11]``, ``txt_ids [4, 3]`` and ``img_ids [49, 3]``.
    """
    named = one_hot(labels, NUM_CLASSES + 1).float()
    place = torch.eye(NUM_TEXT_TOKENS).expand(len(labels), -1, -1)
    rows, columns = torch.meshgrid(torch.arange(NUM_SIDE), torch.arange(NUM_SIDE), indexing="ij")
    return {
        "encoder_hidden_states": torch.cat([named[:, None].expand(-1, NUM_TEXT_TOKENS, -1), place], dim=-1),
        "pooled_projections": named,
        "txt_ids": torch.zeros(NUM_TEXT_TOKENS, 3),
        "img_ids": torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float(),
    }


def pack(pictures: Tensor) -> Tensor:
    """Tokens ``[n, 49, 16]`` of pictures ``[n, 1, 28, 28]``: as ``FluxPipeline`` packs latents ``[n, 4, 14, 14]``, which are here
    the pixels of each 2x2 square.
    """
    latents = pixel_unshuffle(pictures, 2)
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor) -> Tensor:
    """Pictures ``[n, 1, 28, 28]`` of tokens ``[n, 49, 16]``; the inverse of ``pack``."""
    latents = pixel_shuffle(tokens.transpose(1, 2).reshape(len(tokens), -1, NUM_SIDE, NUM_SIDE), 2)
    return pixel_shuffle(latents, 2)
