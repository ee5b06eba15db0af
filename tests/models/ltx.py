"""LTX: gated self-attention, cross-attention to the text, MLP; LTX-2 does so for video and audio, which attend to each other."""

from functools import partial
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel, LTXVideoTransformer3DModel, SanaWMLTX2RefinerTransformer3DModel
from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMRefinerKVCache
from torch import Tensor, nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

CHANNELS = 4
FRAMES, HEIGHT, WIDTH = 2, 8, 8
TOKENS = FRAMES * HEIGHT * WIDTH
TEXT = 12
HISTORY = 1536  # tokens in the refiner's cache: every token embeds the time, and attention must outweigh that
VIDEO = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "num_layers": 3,
    "caption_channels": 16,
}
AUDIO = {
    "audio_in_channels": CHANNELS,
    "audio_out_channels": CHANNELS,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
}
LTX23 = {
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "perturbed_attn": True,
    "use_prompt_embeddings": False,
    "rope_type": "split",
}


def time(step: float) -> Tensor:
    return torch.tensor([1000.0 - 20 * step])


def text_mask() -> Tensor:
    return (torch.arange(TEXT) < TEXT - 3)[None].long()


def ltx() -> nn.Module:
    return randomize(LTXVideoTransformer3DModel(**VIDEO))


def inputs(step: float, seed: int, text_width: int = 16) -> Inputs:
    return {
        "hidden_states": smooth((1, TOKENS, CHANNELS), step, seed, torch.float32),
        "encoder_hidden_states": noise((1, TEXT, text_width), seed, torch.float32),
        "timestep": time(step),
        "encoder_attention_mask": text_mask(),
        "return_dict": False,
    }


def ltx_inputs(step: float, seed: int) -> Inputs:
    return inputs(step, seed) | {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH}


def ltx2(**config: Any) -> nn.Module:
    return randomize(LTX2VideoTransformer3DModel(**VIDEO | AUDIO | config))


def ltx2_inputs(step: float, seed: int, text_width: int = 16, audio_text_width: int = 16) -> Inputs:
    return ltx_inputs(step, seed) | {
        "encoder_hidden_states": noise((1, TEXT, text_width), seed, torch.float32),
        "audio_encoder_hidden_states": noise((1, TEXT, audio_text_width), seed + 1, torch.float32),
        "audio_encoder_attention_mask": text_mask(),
        "audio_hidden_states": smooth((1, 24, CHANNELS), step, seed + 1, torch.float32),
        "audio_num_frames": 24,
        "sigma": time(step),
    }


def refiner() -> nn.Module:
    return randomize(SanaWMLTX2RefinerTransformer3DModel(**VIDEO | AUDIO))


def rotary(tokens: int) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(tokens), torch.logspace(0, -2, 16)).repeat_interleave(2, dim=1)[None]
    return angles.cos(), angles.sin()


def refiner_inputs(step: float, seed: int) -> Inputs:
    """A block of frames that attends to the first frame and to those before it, both in a cache."""
    past = SanaWMRefinerKVCache(3)
    past.sink_pe = rotary(64)
    for i, layer in enumerate(past.layer_caches):
        keys, values = noise((2, 1, 64 + HISTORY, 32), seed + 1 + i, torch.float32)
        layer.store_sink(keys[:, :64], values[:, :64])
        layer.store_history(keys[:, 64:], values[:, 64:])
    return inputs(step, seed) | {
        "timestep": time(step).expand(1, TOKENS).contiguous(),
        "video_rotary_emb": rotary(TOKENS),
        "kv_cache": past,
        "kv_cache_mode": "inject",
    }


VARIANTS = (
    Variant("LTXVideoTransformer3DModel", ltx, ltx_inputs),
    Variant("LTX2VideoTransformer3DModel", ltx2, ltx2_inputs),
    Variant("LTX2VideoTransformer3DModel-2.3", partial(ltx2, **LTX23), partial(ltx2_inputs, text_width=32, audio_text_width=16)),
    Variant("SanaWMLTX2RefinerTransformer3DModel", refiner, refiner_inputs),
)
