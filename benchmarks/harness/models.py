"""Published geometries as diffusers models with fresh weights; depth is the only thing that can be reduced."""

from typing import Any

from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)


def dit(num_layers: int, num_heads: int, head_dim: int, sample_size: int, num_classes: int = 1000) -> DiTTransformer2DModel:
    """Class-conditional DiT with patches of 2 and a learned variance."""
    return DiTTransformer2DModel(
        num_attention_heads=num_heads,
        attention_head_dim=head_dim,
        in_channels=4,
        out_channels=8,
        num_layers=num_layers,
        sample_size=sample_size,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=num_classes,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )


def dit_xl2(num_layers: int = 28, sample_size: int = 32) -> DiTTransformer2DModel:
    """DiT-XL/2: 28 blocks, width 1152; ``sample_size`` 32 is 256x256 pixels (arXiv 2212.09748, table 1)."""
    return dit(num_layers, num_heads=16, head_dim=72, sample_size=sample_size)


def dit_s2(num_layers: int = 12) -> DiTTransformer2DModel:
    """DiT-S/2: 12 blocks, width 384 (arXiv 2212.09748, table 1)."""
    return dit(num_layers, num_heads=6, head_dim=64, sample_size=32)


def flux(num_layers: int = 19, num_single_layers: int = 38, guidance_embeds: bool = True) -> FluxTransformer2DModel:
    """FLUX.1: 19 double and 38 single blocks of width 3072, diffusers' defaults; only dev embeds guidance."""
    return FluxTransformer2DModel(num_layers=num_layers, num_single_layers=num_single_layers, guidance_embeds=guidance_embeds)


def hunyuan_video() -> HunyuanVideoTransformer3DModel:
    """HunyuanVideo: 20 double and 40 single blocks of width 3072, diffusers' defaults."""
    return HunyuanVideoTransformer3DModel(guidance_embeds=True)


def wan(num_layers: int = 40, **config: Any) -> WanTransformer3DModel:
    """Wan 2.1 14B: 40 blocks of width 5120, diffusers' defaults."""
    return WanTransformer3DModel(num_layers=num_layers, **config)


def wan_1_3b(num_layers: int = 30) -> WanTransformer3DModel:
    """Wan 2.1 1.3B: 30 blocks of width 1536 (Wan-AI/Wan2.1-T2V-1.3B-Diffusers, transformer/config.json)."""
    return wan(num_layers, num_attention_heads=12, ffn_dim=8960)


def sd3(num_layers: int, num_heads: int, pos_embed_max_size: int, **config: Any) -> SD3Transformer2DModel:
    """Stable Diffusion 3: heads of 64 channels, the text projected to the model's width."""
    return SD3Transformer2DModel(
        sample_size=128,
        num_layers=num_layers,
        num_attention_heads=num_heads,
        caption_projection_dim=64 * num_heads,
        pos_embed_max_size=pos_embed_max_size,
        **config,
    )


def sd3_medium(num_layers: int = 24) -> SD3Transformer2DModel:
    """SD3-medium: 24 blocks of width 1536 (stabilityai/stable-diffusion-3-medium-diffusers, transformer/config.json)."""
    return sd3(num_layers, num_heads=24, pos_embed_max_size=192)


def sd35_medium() -> SD3Transformer2DModel:
    """SD3.5-medium: 24 blocks of width 1536, the first 13 with a second self-attention of the image."""
    return sd3(24, num_heads=24, pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm")


def sd35_large() -> SD3Transformer2DModel:
    """SD3.5-large: 38 blocks of width 2432."""
    return sd3(38, num_heads=38, pos_embed_max_size=192, qk_norm="rms_norm")
