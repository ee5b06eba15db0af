"""FLUX and its kin: double blocks with joint attention, then single blocks with attention and MLP in parallel."""

from functools import partial

import torch
from diffusers import (
    BriaFiboTransformer2DModel,
    BriaTransformer2DModel,
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    Flux3Transformer2DModel,
    FluxTransformer2DModel,
    LongCatImageTransformer2DModel,
    OvisImageTransformer2DModel,
)
from torch import Tensor, nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

GRID = 4
TEXT = 6


def image_ids(grid: int = GRID, axes: int = 3) -> Tensor:
    """Rows and columns on the axes after the first, other axes zero."""
    tokens = torch.arange(grid * grid)
    ids = torch.zeros(grid * grid, axes)
    ids[:, 1], ids[:, 2] = tokens // grid, tokens % grid
    return ids


def padding_mask(grid: int) -> Tensor:
    """Over text, whose last two tokens are padding, and image."""
    mask = torch.ones(1, TEXT + grid * grid, dtype=torch.bool)
    mask[:, TEXT - 2 : TEXT] = False
    return mask


def stream_inputs(step: float, seed: int, grid: int = GRID, axes: int = 3) -> Inputs:
    """Latents, text and positions of a grid x grid image; time runs 1 -> 0."""
    return {
        "hidden_states": smooth((1, grid * grid, 4), step, seed, torch.float32),
        "encoder_hidden_states": noise((1, TEXT, 16), seed, torch.float32),
        "timestep": torch.full((1,), 1.0 - step / 50),
        "img_ids": image_ids(grid, axes),
        "txt_ids": torch.zeros(TEXT, axes),
        "return_dict": False,
    }


def flux() -> nn.Module:
    return randomize(
        FluxTransformer2DModel(
            in_channels=4,
            num_layers=3,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=[2, 2, 4],
            guidance_embeds=True,
        )
    )


def flux_inputs(step: float, seed: int) -> Inputs:
    guidance = {"guidance": torch.full((1,), 3.5)}
    return stream_inputs(step, seed) | guidance | {"pooled_projections": noise((1, 16), seed + 1, torch.float32)}


def flux2() -> nn.Module:
    return randomize(
        Flux2Transformer2DModel(
            in_channels=4,
            num_layers=3,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            timestep_guidance_channels=16,
            mlp_ratio=4.0,
            axes_dims_rope=(2, 2, 2, 2),
        )
    )


def flux2_inputs(step: float, seed: int) -> Inputs:
    inputs = stream_inputs(step, seed, grid=8, axes=4)
    inputs["txt_ids"][:, 3] = torch.arange(TEXT)
    return inputs | {"guidance": torch.full((1,), 4.0)}


def flux3() -> nn.Module:
    return randomize(
        Flux3Transformer2DModel(
            in_channels=4,
            cond_in_channels=4,
            num_layers=3,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            timestep_channels=16,
            mlp_ratio=4.0,
            axes_dims_rope=(2, 2, 2, 2),
        )
    )


def flux3_inputs(step: float, seed: int) -> Inputs:
    """Many tokens: the modulation is a linear layer on every token, to be outweighed by attention."""
    return stream_inputs(step, seed, grid=14, axes=4)


def flux3_reference_inputs(step: float, seed: int) -> Inputs:
    ids = image_ids(8, axes=4)
    ids[:, 0] = 1
    return flux3_inputs(step, seed) | {
        "image_cond_hidden_states": noise((1, 64, 4), seed + 1, torch.float32),
        "image_cond_ids": ids,
    }


def chroma(num_layers: int = 3) -> nn.Module:
    return randomize(
        ChromaTransformer2DModel(
            in_channels=4,
            num_layers=num_layers,
            num_single_layers=num_layers,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
            approximator_num_channels=16,
            approximator_hidden_dim=8,
            approximator_layers=2,
        )
    )


def chroma_inputs(step: float, seed: int) -> Inputs:
    return stream_inputs(step, seed, grid=8) | {"attention_mask": padding_mask(8)}


def bria() -> nn.Module:
    return randomize(
        BriaTransformer2DModel(
            in_channels=4,
            num_layers=3,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=[2, 2, 4],
        )
    )


def bria_inputs(step: float, seed: int) -> Inputs:
    """Time runs 1000 -> 0."""
    return stream_inputs(step, seed, grid=8) | {"timestep": torch.full((1,), 1000.0 - 20 * step)}


def bria_fibo() -> nn.Module:
    return randomize(
        BriaFiboTransformer2DModel(
            in_channels=4,
            num_layers=3,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            text_encoder_dim=8,
            axes_dims_rope=[2, 2, 4],
        )
    )


def bria_fibo_inputs(step: float, seed: int) -> Inputs:
    """Every block replaces half of the text's channels by a layer of the text encoder."""
    return bria_inputs(step, seed) | {
        "joint_attention_kwargs": {"attention_mask": padding_mask(8)[:, None, None, :]},
        "text_encoder_layers": [noise((1, TEXT, 8), seed + layer, torch.float32) for layer in range(6)],
    }


def longcat() -> nn.Module:
    return randomize(
        LongCatImageTransformer2DModel(
            in_channels=4,
            num_layers=3,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=[2, 2, 4],
        )
    )


def ovis() -> nn.Module:
    return randomize(
        OvisImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=3,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
        )
    )


VARIANTS = (
    Variant("FluxTransformer2DModel", flux, flux_inputs),
    Variant("Flux2Transformer2DModel", flux2, flux2_inputs),
    Variant("Flux3Transformer2DModel", flux3, flux3_inputs),
    Variant("Flux3Transformer2DModel-reference", flux3, flux3_reference_inputs),
    Variant("ChromaTransformer2DModel", chroma, chroma_inputs),
    Variant("BriaTransformer2DModel", bria, bria_inputs),
    Variant("BriaFiboTransformer2DModel", bria_fibo, bria_fibo_inputs),
    Variant("LongCatImageTransformer2DModel", longcat, partial(stream_inputs, grid=8)),
    Variant("OvisImageTransformer2DModel", ovis, partial(stream_inputs, grid=8)),
)
