"""Video by chunks, built on Wan's blocks: the frames before are in a cache of keys and values or in the same sequence."""

from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    AnyFlowFARTransformer3DModel,
    AnyFlowTransformer3DModel,
    HeliosTransformer3DModel,
    WanAnimate2Transformer3DModel,
)
from diffusers.models.transformers import transformer_wan_animate_2
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from tests.models.variant import Inputs, Variant
from tests.models.wan import CHANNELS, CONFIG, SIZE, WIDTH, time
from tests.zoo import noise, randomize, smooth

TOKENS = SIZE * SIZE // 4  # of a frame
TEXT = (1, 12, 16)


def helios() -> nn.Module:
    return randomize(
        HeliosTransformer3DModel(**{key: value for key, value in CONFIG.items() if key != "rope_max_seq_len"}, rope_dim=(4, 4, 4))
    )


def helios_inputs(step: float, seed: int) -> Inputs:
    """Sixteen, two and one past frames at three scales, the first frame of all, then the two frames to denoise."""

    def past(frames: int, offset: int) -> Tensor:
        return noise((1, CHANNELS, frames, SIZE, SIZE), seed + offset, torch.float32)

    first, long, mid, short, now = torch.arange(22)[None].split([1, 16, 2, 1, 2], dim=1)
    return {
        "hidden_states": smooth((1, CHANNELS, 2, SIZE, SIZE), step, seed, torch.float32),
        "timestep": time(step),
        "encoder_hidden_states": noise(TEXT, seed, torch.float32),
        "indices_hidden_states": now,
        "indices_latents_history_short": torch.cat([first, short], dim=1),
        "indices_latents_history_mid": mid,
        "indices_latents_history_long": long,
        "latents_history_short": past(2, 1),
        "latents_history_mid": past(2, 2),
        "latents_history_long": past(16, 3),
        "return_dict": False,
    }


def anyflow() -> nn.Module:
    return randomize(AnyFlowTransformer3DModel(**CONFIG, cross_attn_norm=True))


def anyflow_inputs(step: float, seed: int, frames: int = 2) -> Inputs:
    """Time and the time to go to, a number a frame, and frames before channels."""
    return {
        "hidden_states": smooth((1, frames, CHANNELS, SIZE, SIZE), step, seed, torch.float32),
        "timestep": torch.full((1, frames), 1000.0 - 20 * step),
        "r_timestep": torch.full((1, frames), 980.0 - 20 * step),
        "encoder_hidden_states": noise(TEXT, seed, torch.float32),
        "return_dict": False,
    }


def far() -> nn.Module:
    return randomize(
        AnyFlowFARTransformer3DModel(**CONFIG, cross_attn_norm=True, compressed_patch_size=(1, 4, 4), full_chunk_limit=2)
    )


def far_cached_inputs(step: float, seed: int) -> Inputs:
    """The fourth chunk of a video: one chunk before it is cached in full, two are cached compressed."""

    def cached(tokens: int, layer: int) -> Tensor:
        return noise((2, 1, 2, tokens, WIDTH // 2), seed + 1 + layer, torch.float32)

    layers = {i: {"full_cache": cached(TOKENS, 2 * i), "compressed_cache": cached(TOKENS // 2, 2 * i + 1)} for i in range(3)}
    return anyflow_inputs(step, seed, frames=1) | {
        "chunk_partition": [1, 1, 1, 1],
        "kv_cache": layers,
        "kv_cache_flag": {  # the last two are what the model itself would write there
            "num_cached_chunks": 3,
            "is_cache_step": False,
            "num_cached_full_tokens": TOKENS,
            "num_cached_compressed_tokens": TOKENS // 2,
        },
    }


@cache
def far_mask() -> BlockMask:
    return far().build_attention_mask(chunk_partition=[1, 1, 1], height=SIZE, width=SIZE)


def far_rollout_inputs(step: float, seed: int) -> Inputs:
    """Three chunks at once, without a cache: one compressed, two in full."""
    return anyflow_inputs(step, seed, frames=3) | {"chunk_partition": [1, 1, 1], "attention_mask": far_mask()}


REFERENCE_FRAMES = 2
SEGMENT = {"origin_len": 5, "origin_area": [128, 128]}  # pixels: two latent frames of 16 x 16


def animate2() -> nn.Module:
    model = randomize(
        WanAnimate2Transformer3DModel(
            text_len=12,
            in_dim=2 * CHANNELS + 4,
            dim=32,
            ffn_dim=128,
            freq_dim=32,
            text_dim=16,
            out_dim=CHANNELS,
            num_heads=2,
            num_layers=3,
            use_img_emb=False,  # it would be 1280 wide
        )
    )
    with patch.object(transformer_wan_animate_2, "create_block_mask", uncompiled_block_mask):
        model.block_masks[REFERENCE_FRAMES, TOKENS] = model.create_mask(REFERENCE_FRAMES, TOKENS, torch.device("cpu"))
    return model


def uncompiled_block_mask(*args: Any, _compile: bool, **kwargs: Any) -> BlockMask:
    """The model would have Inductor compile the building of the mask that it makes in its first step."""
    return create_block_mask(*args, **kwargs)


def animate2_inputs(step: float, seed: int) -> Inputs:
    """A reference pass has left keys and values; the frames to denoise are one more, the reference image's."""
    frames = REFERENCE_FRAMES + 1
    past = transformer_wan_animate_2.WanAnimate2KVCache(3)
    for i, layer in enumerate(past.layer_caches):
        shape = (1, REFERENCE_FRAMES * TOKENS, 2, 16)
        layer.store(noise(shape, seed + 2 * i, torch.float32), noise(shape, seed + 2 * i + 1, torch.float32))
    return {
        "hidden_states": [smooth((CHANNELS, frames, SIZE, SIZE), step, seed, torch.float32)],
        "timestep": torch.tensor([1000.0 - 20 * step]),
        "encoder_hidden_states": [noise((8, 16), seed, torch.float32)],
        "condition_latents": [noise((CHANNELS + 4, frames, SIZE, SIZE), seed + 7, torch.float32)],
        "kv_cache": past,
        "kv_cache_mode": "cached",
        "seq_len": frames * TOKENS,
        "reference_grid_sizes": torch.tensor([[REFERENCE_FRAMES, SIZE // 2, SIZE // 2]]),
        "return_dict": False,
        **SEGMENT,
    }


READ_SIZES = "grid sizes are read with .item() and .tolist()"
UNSEEN = "the time is embedded in a part that Dynamo leaves to Python"

VARIANTS = (
    Variant("HeliosTransformer3DModel", helios, helios_inputs),
    Variant("AnyFlowTransformer3DModel", anyflow, anyflow_inputs),
    Variant("AnyFlowFARTransformer3DModel-cached", far, far_cached_inputs),
    Variant("AnyFlowFARTransformer3DModel-rollout", far, far_rollout_inputs),
    Variant("WanAnimate2Transformer3DModel", animate2, animate2_inputs, broken=READ_SIZES, untimed=UNSEEN),
)
