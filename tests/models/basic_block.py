"""Models made of diffusers' BasicTransformerBlock: with adaLN gates (DiT, PixArt), or with no gate at all."""

import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, PriorTransformer, Transformer2DModel
from diffusers.models.transformers import TransformerTemporalModel
from torch import Tensor, nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

SIZE = 16
TEXT = 6
WIDTH = 32
FRAMES = 8
CODES = 16  # vectors of the codebook, the last of which is the mask


def latents(step: float, seed: int, channels: int = 4, size: int = SIZE, batch: int = 1) -> Tensor:
    return smooth((batch, channels, size, size), step, seed, torch.float32)


def text(seed: int) -> Tensor:
    return noise((1, TEXT, 16), seed, torch.float32)


def text_mask() -> Tensor:
    return torch.arange(TEXT)[None] < TEXT - 2


def timestep(step: float) -> Tensor:
    return torch.full((1,), int(1000 - 20 * step))


PATCHED = {
    "num_attention_heads": 4,
    "attention_head_dim": WIDTH // 4,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "sample_size": SIZE,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
}


def dit() -> nn.Module:
    return randomize(DiTTransformer2DModel(**PATCHED, num_embeds_ada_norm=10))


def class_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": latents(step, seed),
        "timestep": timestep(step),
        "class_labels": torch.tensor([seed % 10]),
        "return_dict": False,
    }


def text_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": latents(step, seed),
        "encoder_hidden_states": text(seed),
        "encoder_attention_mask": text_mask().long(),
        "timestep": timestep(step),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }


def pixart() -> nn.Module:
    return randomize(
        PixArtTransformer2DModel(**PATCHED, cross_attention_dim=WIDTH, caption_channels=16, use_additional_conditions=False)
    )


def pixart_conditions() -> nn.Module:
    """The width is split in three, for the two numbers of the resolution and the aspect ratio."""
    config = {**PATCHED, "attention_head_dim": 12, "cross_attention_dim": 48}
    return randomize(PixArtTransformer2DModel(**config, caption_channels=16, use_additional_conditions=True))


def conditioned_inputs(step: float, seed: int) -> Inputs:
    """Resolution and aspect ratio are embedded like the timestep."""
    conditions = {"resolution": torch.tensor([[128.0, 128.0]]), "aspect_ratio": torch.tensor([[1.0]])}
    return {**text_inputs(step, seed), "added_cond_kwargs": conditions}


def ada_norm_zero() -> nn.Module:
    return randomize(
        Transformer2DModel(**PATCHED, norm_type="ada_norm_zero", norm_elementwise_affine=False, num_embeds_ada_norm=10)
    )


def ada_norm_single() -> nn.Module:
    return randomize(
        Transformer2DModel(
            **PATCHED,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            cross_attention_dim=WIDTH,
            caption_channels=16,
            attention_bias=True,
        )
    )


def continuous() -> nn.Module:
    """As in Stable Diffusion's UNet: projections and a skip around all blocks."""
    return randomize(
        Transformer2DModel(
            num_attention_heads=4,
            attention_head_dim=WIDTH // 4,
            in_channels=8,
            num_layers=3,
            norm_num_groups=2,
            cross_attention_dim=16,
        )
    )


def continuous_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": latents(step, seed, channels=8, size=8),
        "encoder_hidden_states": text(seed),
        "encoder_attention_mask": text_mask(),
        "return_dict": False,
    }


def vectorized() -> nn.Module:
    """As in VQ-Diffusion: denoises indices of a codebook; the timestep is looked up in a table by every norm."""
    return randomize(
        Transformer2DModel(
            num_attention_heads=4,
            attention_head_dim=WIDTH // 4,
            num_layers=3,
            sample_size=8,
            num_vector_embeds=CODES,
            num_embeds_ada_norm=1001,
            norm_type="ada_norm",
            cross_attention_dim=16,
            attention_bias=True,
            activation_fn="geglu-approximate",
        )
    )


def vectorized_inputs(step: float, seed: int) -> Inputs:
    codes = (4 * smooth((1, 64), step, seed, torch.float32)).long() % CODES
    return {"hidden_states": codes, "encoder_hidden_states": text(seed), "timestep": timestep(step)[0], "return_dict": False}


def temporal() -> nn.Module:
    return randomize(
        TransformerTemporalModel(
            num_attention_heads=4, attention_head_dim=WIDTH // 4, in_channels=8, num_layers=3, norm_num_groups=2
        )
    )


def temporal_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": latents(step, seed, channels=8, size=4, batch=FRAMES),
        "num_frames": FRAMES,
        "return_dict": False,
    }


def prior() -> nn.Module:
    """Time is a token among others; one more of them becomes the image embedding."""
    return randomize(
        PriorTransformer(num_attention_heads=4, attention_head_dim=WIDTH // 4, num_layers=3, embedding_dim=16, num_embeddings=16)
    )


def prior_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": smooth((1, 16), step, seed, torch.float32),
        "timestep": torch.tensor(int(1000 - 20 * step)),
        "proj_embedding": noise((1, 16), seed + 1, torch.float32),
        "encoder_hidden_states": noise((1, 16, 16), seed, torch.float32),
        "attention_mask": torch.arange(16)[None] < 14,
        "return_dict": False,
    }


VARIANTS = (
    Variant("DiTTransformer2DModel", dit, class_inputs),
    Variant("PixArtTransformer2DModel", pixart, text_inputs),
    Variant("PixArtTransformer2DModel-conditions", pixart_conditions, conditioned_inputs),
    Variant("Transformer2DModel-ada_norm_zero", ada_norm_zero, class_inputs),
    Variant("Transformer2DModel-ada_norm_single", ada_norm_single, text_inputs),
    Variant("Transformer2DModel-continuous", continuous, continuous_inputs, untimed="its UNet adds the time outside of it"),
    Variant(
        "Transformer2DModel-vectorized", vectorized, vectorized_inputs, untimed="the timestep is an index into tables, not a wave"
    ),
    Variant("TransformerTemporalModel", temporal, temporal_inputs, untimed="its UNet adds the time outside of it"),
    Variant("PriorTransformer", prior, prior_inputs),
)
