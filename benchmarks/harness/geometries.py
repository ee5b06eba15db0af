"""Full-size models by name, for ``taylorseer-fx plan``: sizes from the defaults of diffusers' classes or the published configs.

Nothing here is read by a pass: names of models are data of the command line. Build them under ``torch.device("meta")``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    LTXVideoTransformer3DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
)
from torch import Tensor, nn

from taylorseer_fx.bench import models

BFLOAT16 = torch.bfloat16
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Geometry:
    """A model at full size and the inputs of one call of it; ``source`` says where its sizes come from."""

    name: str
    work: str  # what one call denoises
    source: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    dtype: torch.dtype = BFLOAT16
    num_steps: int = 50  # as its pipeline defaults to

    def on_meta(self) -> tuple[nn.Module, Inputs]:
        """The model and its inputs without storage."""
        with torch.device("meta"):
            # not the model's own ``to``, which talks about dtypes
            return nn.Module.to(self.build(), self.dtype).eval().requires_grad_(False), self.inputs() | {"return_dict": False}


def _half(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=BFLOAT16)


def _time(batch: int = 1) -> Tensor:
    return torch.empty(batch, dtype=torch.long)


def _dit_inputs(size: int) -> Inputs:
    """Guidance as a batch of two."""
    return {
        "hidden_states": torch.empty(2, 4, size, size),
        "timestep": _time(2),
        "class_labels": torch.empty(2, dtype=torch.long),
    }


def _flux_inputs(guidance: bool, text: int = 512, image: int = 4096) -> Inputs:
    return {
        "hidden_states": _half(1, image, 64),
        "encoder_hidden_states": _half(1, text, 4096),
        "pooled_projections": _half(1, 768),
        "timestep": _half(1),
        "img_ids": _half(image, 3),
        "txt_ids": _half(text, 3),
        **({"guidance": torch.empty(1)} if guidance else {}),
    }


def _hunyuan_inputs() -> Inputs:
    return {
        "hidden_states": _half(1, 16, 17, 60, 80),
        "timestep": _time(),
        "encoder_hidden_states": _half(1, 256, 4096),
        "encoder_attention_mask": torch.ones(1, 256),
        "pooled_projections": _half(1, 768),
        "guidance": torch.empty(1),
    }


def _wan_inputs(height: int = 60, width: int = 104) -> Inputs:
    """One of the two calls a step that guidance makes."""
    return {
        "hidden_states": _half(1, 16, 21, height, width),
        "timestep": _time(),
        "encoder_hidden_states": _half(1, 512, 4096),
    }


def _sd3_inputs() -> Inputs:
    """Guidance as a batch of two; 77 tokens of CLIP and 256 of T5."""
    return {
        "hidden_states": _half(2, 16, 128, 128),
        "encoder_hidden_states": _half(2, 333, 4096),
        "pooled_projections": _half(2, 2048),
        "timestep": _half(2),
    }


def _qwen() -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel()


def _qwen_inputs() -> Inputs:
    """1328x1328, one of the two calls a step that guidance makes; 128 tokens of text."""
    return {
        "hidden_states": _half(1, 83 * 83, 64),
        "encoder_hidden_states": _half(1, 128, 3584),
        "timestep": _half(1),
        "img_shapes": [[(1, 83, 83)]],
    }


def _pixart() -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(caption_channels=4096, interpolation_scale=2, use_additional_conditions=False)


def _pixart_inputs() -> Inputs:
    return {
        "hidden_states": _half(2, 4, 128, 128),
        "encoder_hidden_states": _half(2, 300, 4096),
        "encoder_attention_mask": torch.ones(2, 300),
        "timestep": _time(2),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _cogvideox() -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel(
        num_attention_heads=48,
        num_layers=42,
        use_rotary_positional_embeddings=True,
    )


def _cogvideox_inputs() -> Inputs:
    tokens = 13 * 30 * 45
    return {
        "hidden_states": _half(2, 13, 16, 60, 90),
        "encoder_hidden_states": _half(2, 226, 4096),
        "timestep": _time(2),
        "image_rotary_emb": (torch.empty(tokens, 64), torch.empty(tokens, 64)),
    }


def _ltx_inputs() -> Inputs:
    """512x704, 161 frames: 21 latent frames of 16x22; guidance as a batch of two."""
    return {
        "hidden_states": _half(2, 21 * 16 * 22, 128),
        "encoder_hidden_states": _half(2, 128, 4096),
        "timestep": _time(2),
        "encoder_attention_mask": torch.ones(2, 128),
        "num_frames": 21,
        "height": 16,
        "width": 22,
    }


def _sana_inputs() -> Inputs:
    """Guidance as a batch of two."""
    return {
        "hidden_states": _half(2, 32, 32, 32),
        "encoder_hidden_states": _half(2, 300, 2304),
        "timestep": _time(2),
        "encoder_attention_mask": torch.ones(2, 300),
    }


_DEFAULTS = "defaults of diffusers' class"
_GEOMETRIES = (
    Geometry(
        "FLUX.1-dev", "1024x1024, 512 text tokens", _DEFAULTS, models.flux, lambda: _flux_inputs(guidance=True), num_steps=50
    ),
    Geometry(
        "FLUX.1-schnell",
        "1024x1024, 256 text tokens",
        _DEFAULTS,
        lambda: models.flux(guidance_embeds=False),
        lambda: _flux_inputs(guidance=False, text=256),
        num_steps=4,
    ),
    Geometry("HunyuanVideo", "480x640, 65 frames", _DEFAULTS, models.hunyuan_video, _hunyuan_inputs),
    Geometry(
        "DiT-XL/2-256", "256x256, guidance batch 2", "arXiv 2212.09748", models.dit_xl2, lambda: _dit_inputs(32), torch.float32
    ),
    Geometry(
        "DiT-XL/2-512",
        "512x512, guidance batch 2",
        "arXiv 2212.09748",
        lambda: models.dit_xl2(sample_size=64),
        lambda: _dit_inputs(64),
        torch.float32,
    ),
    Geometry("Wan2.1-14B", "480x832, 81 frames, one of two calls a step", _DEFAULTS, models.wan, _wan_inputs),
    Geometry(
        "Wan2.1-14B-720p", "720x1280, 81 frames, one of two calls a step", _DEFAULTS, models.wan, lambda: _wan_inputs(90, 160)
    ),
    Geometry(
        "Wan2.1-1.3B",
        "480x832, 81 frames, one of two calls a step",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        models.wan_1_3b,
        _wan_inputs,
    ),
    Geometry(
        "SD3-medium",
        "1024x1024, guidance batch 2",
        "stabilityai/stable-diffusion-3-medium-diffusers",
        models.sd3_medium,
        _sd3_inputs,
        num_steps=28,
    ),
    Geometry(
        "SD3.5-medium",
        "1024x1024, guidance batch 2",
        "stabilityai/stable-diffusion-3.5-medium",
        models.sd35_medium,
        _sd3_inputs,
        num_steps=28,
    ),
    Geometry(
        "SD3.5-large",
        "1024x1024, guidance batch 2",
        "stabilityai/stable-diffusion-3.5-large",
        models.sd35_large,
        _sd3_inputs,
        num_steps=28,
    ),
    Geometry("Qwen-Image", "1328x1328, one of two calls a step", _DEFAULTS, _qwen, _qwen_inputs),
    Geometry(
        "PixArt-alpha",
        "1024x1024, guidance batch 2",
        "PixArt-alpha/PixArt-XL-2-1024-MS",
        _pixart,
        _pixart_inputs,
        num_steps=20,
    ),
    Geometry("CogVideoX-5b", "480x720, 49 frames, guidance batch 2", "THUDM/CogVideoX-5b", _cogvideox, _cogvideox_inputs),
    Geometry("LTX-Video", "512x704, 161 frames, guidance batch 2", _DEFAULTS, LTXVideoTransformer3DModel, _ltx_inputs),
    Geometry("Sana-1.6B", "1024x1024, guidance batch 2", _DEFAULTS, SanaTransformer2DModel, _sana_inputs, num_steps=20),
)
GEOMETRIES: dict[str, Geometry] = {geometry.name: geometry for geometry in _GEOMETRIES}
