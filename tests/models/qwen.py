"""Qwen-Image and its kin: blocks with joint attention, rotary positions from lists of image shapes, editing by more images."""

from functools import partial

import torch
from diffusers import (
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    NucleusMoEImageTransformer2DModel,
    QwenImageTransformer2DModel,
)
from diffusers.models.transformers import QwenImage21Transformer2DModel
from torch import nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

TEXT = 8
PADDING = 2
GRID = 8
REFERENCE = 4


def text_mask() -> torch.Tensor:
    mask = torch.ones(1, TEXT, dtype=torch.bool)
    mask[:, -PADDING:] = False
    return mask


def qwen_image(**options: bool) -> nn.Module:
    return randomize(
        QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
            **options,
        )
    )


def qwen_image_inputs(step: float, seed: int) -> Inputs:
    """Time runs 1 -> 0."""
    return {
        "hidden_states": smooth((1, GRID * GRID, 16), step, seed, torch.float32),
        "encoder_hidden_states": noise((1, TEXT, 16), seed, torch.float32),
        "encoder_hidden_states_mask": text_mask(),
        "timestep": torch.full((1,), 1.0 - step / 50),
        "img_shapes": [[(1, GRID, GRID)]],
        "return_dict": False,
    }


def qwen_image_edit_inputs(step: float, seed: int) -> Inputs:
    """The tokens of an image to edit come after the latents and have timestep 0."""
    inputs = qwen_image_inputs(step, seed)
    reference = noise((1, REFERENCE * REFERENCE, 16), seed + 1, torch.float32)
    return inputs | {
        "hidden_states": torch.cat([inputs["hidden_states"], reference], dim=1),
        "img_shapes": [[(1, GRID, GRID), (1, REFERENCE, REFERENCE)]],
    }


def qwen_image_layered_inputs(step: float, seed: int) -> Inputs:
    """Layers of an image, all denoised, before the image that they shall add up to."""
    inputs = qwen_image_inputs(step, seed)
    reference = noise((1, GRID * GRID, 16), seed + 1, torch.float32)
    return inputs | {
        "hidden_states": torch.cat([inputs["hidden_states"], reference], dim=1),
        "img_shapes": [[(1, GRID, REFERENCE), (1, GRID, REFERENCE), (1, GRID, GRID)]],
        "additional_t_cond": torch.zeros(1, dtype=torch.long),
    }


def qwen_image21() -> nn.Module:
    return randomize(
        QwenImage21Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            context_in_dim=16,
            mlp_ratio=4,
            axes_dims_rope=(2, 2, 4),
        )
    )


def qwen_image21_inputs(step: float, seed: int) -> Inputs:
    """One slot of ``img_mask`` stands for 2 x 2 latents: one image to edit within the text, then the image to be."""
    reference = torch.zeros(1, TEXT, dtype=torch.bool)
    reference[:, 1:5] = True
    latents = smooth((1, GRID * GRID, 4), step, seed, torch.float32)
    return {
        "hidden_states": torch.cat([noise((1, 16, 4), seed + 1, torch.float32), latents], dim=1),
        "encoder_hidden_states": noise((1, TEXT, 16), seed, torch.float32),
        "encoder_hidden_states_mask": text_mask(),
        "timestep": torch.full((1,), 1.0 - step / 50),
        "img_shapes": [[(1, 4, 4), (1, GRID, GRID)]],
        "img_mask": torch.cat([reference, torch.ones(1, GRID * GRID // 4, dtype=torch.bool)], dim=1),
        "return_dict": False,
    }


def joy_image_edit(rope_type: str) -> nn.Module:
    return randomize(
        JoyImageEditTransformer3DModel(
            in_channels=4,
            hidden_size=32,
            num_attention_heads=4,
            text_dim=16,
            num_layers=3,
            rope_dim_list=[2, 2, 4],
            rope_type=rope_type,
        )
    )


def joy_image_edit_inputs(step: float, seed: int) -> Inputs:
    """Two items in a row, the image to edit and the image to be; time runs 1000 -> 0."""
    latents = smooth((1, 1, 4, 1, 24, 24), step, seed, torch.float32)
    return {
        "hidden_states": torch.cat([noise((1, 1, 4, 1, 24, 24), seed + 1, torch.float32), latents], dim=1),
        "timestep": torch.full((1,), 1000.0 - 20 * step),
        "encoder_hidden_states": noise((1, TEXT, 16), seed, torch.float32),
        "return_dict": False,
    }


def joy_image_edit_plus() -> nn.Module:
    return randomize(
        JoyImageEditPlusTransformer3DModel(
            in_channels=4,
            hidden_size=32,
            num_attention_heads=4,
            text_dim=16,
            num_layers=3,
            rope_dim_list=[2, 2, 4],
        )
    )


def joy_image_edit_plus_inputs(step: float, seed: int) -> Inputs:
    """Images of several sizes as a row of patches, the target's first; the row's last patches and the text's are padding."""
    target, reference, padding = 12 * 12, 6 * 8, 4
    patches = smooth((1, target + reference + padding, 4, 1, 2, 2), step, seed, torch.float32)
    patches[:, target:] = noise((1, reference + padding, 4, 1, 2, 2), seed + 1, torch.float32)
    return {
        "hidden_states": patches,
        "timestep": torch.full((1,), 1000.0 - 20 * step),
        "encoder_hidden_states": noise((1, TEXT, 16), seed, torch.float32),
        "encoder_hidden_states_mask": text_mask().float(),
        "shape_list": [[(1, 12, 12), (1, 6, 8)]],
        "return_dict": False,
    }


def nucleus() -> nn.Module:
    """Three dense blocks, whose MLP has a multiple of 128 channels, then three with experts that choose their tokens."""
    return randomize(
        NucleusMoEImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=6,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
            mlp_ratio=6.0,
            dense_moe_strategy="leave_first_three_blocks_dense",
            num_experts=4,
            moe_intermediate_dim=64,
            capacity_factors=2.0,
        )
    )


def nucleus_inputs(step: float, seed: int) -> Inputs:
    return qwen_image_inputs(step, seed) | {"img_shapes": [(1, GRID, GRID)]}


JOINING = "masks and shapes, read as numbers, say where images lie in the text"

VARIANTS = (
    Variant("QwenImageTransformer2DModel", qwen_image, qwen_image_inputs),
    Variant("QwenImageTransformer2DModel-edit", partial(qwen_image, zero_cond_t=True), qwen_image_edit_inputs),
    Variant(
        "QwenImageTransformer2DModel-layered",
        partial(qwen_image, use_additional_t_cond=True, use_layer3d_rope=True),
        qwen_image_layered_inputs,
    ),
    Variant("QwenImage21Transformer2DModel", qwen_image21, qwen_image21_inputs, broken=JOINING),
    Variant("JoyImageEditTransformer3DModel", partial(joy_image_edit, rope_type="rope"), joy_image_edit_inputs),
    Variant(
        "JoyImageEditTransformer3DModel-mrope", partial(joy_image_edit, rope_type="mrope"), joy_image_edit_inputs, fullgraph=True
    ),
    Variant("JoyImageEditPlusTransformer3DModel", joy_image_edit_plus, joy_image_edit_plus_inputs),
    Variant("NucleusMoEImageTransformer2DModel", nucleus, nucleus_inputs, fullgraph=True),
)
