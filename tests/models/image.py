"""Image models with blocks of their own: linear attention (Sana), long skips (HunyuanDiT), attention on image and text (PRX)."""

import torch
from diffusers import (
    HunyuanDiT2DModel,
    OmniGenTransformer2DModel,
    PRXTransformer2DModel,
    SanaTransformer2DModel,
)
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from torch import nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

SIZE = 16
GRID = SIZE // 2
TEXT = 8


def sana(*, sprint: bool) -> nn.Module:
    """Attention without softmax, and an MLP of convolutions; Sprint normalises queries and keys and embeds the guidance."""
    return randomize(
        SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=4,
            attention_head_dim=8,
            num_layers=3,
            num_cross_attention_heads=4,
            cross_attention_head_dim=8,
            cross_attention_dim=32,
            caption_channels=16,
            sample_size=GRID,
            guidance_embeds=sprint,
            qk_norm="rms_norm_across_heads" if sprint else None,
        )
    )


def sana_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": smooth((1, 4, GRID, GRID), step, seed, torch.float32),
        "encoder_hidden_states": noise((1, TEXT, 16), seed, torch.float32),
        "encoder_attention_mask": (torch.arange(TEXT)[None] < TEXT - 2).long(),
        "timestep": torch.full((1,), 1000.0 - 20 * step),
        "return_dict": False,
    }


def sprint_inputs(step: float, seed: int) -> Inputs:
    return {
        **sana_inputs(step, seed),
        "timestep": torch.full((1,), 1.0 - step / 50),
        "guidance": torch.full((1,), 0.45),
    }


def hunyuan_dit() -> nn.Module:
    """Six blocks: the last two take the concatenated output of an early one."""
    return randomize(
        HunyuanDiT2DModel(
            num_attention_heads=4,
            attention_head_dim=16,
            in_channels=4,
            patch_size=2,
            sample_size=GRID,
            hidden_size=64,
            num_layers=6,
            learn_sigma=False,
            cross_attention_dim=16,
            cross_attention_dim_t5=16,
            pooled_projection_dim=16,
            text_len=TEXT,
            text_len_t5=TEXT,
        )
    )


def hunyuan_dit_inputs(step: float, seed: int) -> Inputs:
    rows = 12  # tokens enough that the linear layers of the long skips are little beside the attention
    return {
        "hidden_states": smooth((1, 4, 2 * rows, 2 * rows), step, seed, torch.float32),
        "timestep": torch.full((1,), 1000.0 - 20 * step),
        "encoder_hidden_states": noise((1, TEXT, 16), seed, torch.float32),
        "text_embedding_mask": (torch.arange(TEXT)[None] < TEXT - 2).long(),
        "encoder_hidden_states_t5": noise((1, TEXT, 16), seed + 1, torch.float32),
        "text_embedding_mask_t5": (torch.arange(TEXT)[None] < TEXT - 3).long(),
        "image_meta_size": torch.tensor([[1024.0, 1024.0, 128.0, 128.0, 0.0, 0.0]]),
        "style": torch.zeros(1, dtype=torch.long),
        "image_rotary_emb": get_2d_rotary_pos_embed(16, ((0, 0), (rows, rows)), (rows, rows), output_type="pt"),
        "return_dict": False,
    }


def prx() -> nn.Module:
    return randomize(
        PRXTransformer2DModel(
            in_channels=4,
            context_in_dim=16,
            hidden_size=48,
            mlp_ratio=4.0,
            num_heads=4,
            depth=3,
            axes_dim=[6, 6],
            resolution_embeds=True,
        )
    )


def prx_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": smooth((1, 4, SIZE, SIZE), step, seed, torch.float32),
        "timestep": torch.full((1,), 1.0 - step / 50),
        "encoder_hidden_states": noise((1, TEXT, 16), seed, torch.float32),
        "attention_mask": torch.arange(TEXT)[None] < TEXT - 2,
        "return_dict": False,
    }


def omnigen() -> nn.Module:
    """Prompt, input image, time and latents are one sequence."""
    return randomize(
        OmniGenTransformer2DModel(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=128,
            num_layers=3,
            pad_token_id=0,
            vocab_size=50,
            time_step_dim=16,
            pos_embed_max_size=GRID,
            rope_scaling={"long_factor": [1.0, 2.0, 3.0, 4.0], "short_factor": [1.0, 1.0, 1.0, 1.0]},
        )
    )


def omnigen_inputs(step: float, seed: int) -> Inputs:
    num_image = 16
    length = num_image + TEXT + 1 + GRID * GRID
    return {
        "hidden_states": smooth((1, 4, SIZE, SIZE), step, seed, torch.float32),
        "timestep": torch.full((1,), step / 50),
        "input_ids": (torch.arange(num_image + TEXT)[None] + seed) % 50,
        "input_img_latents": [noise((1, 4, 8, 8), seed, torch.float32)],
        "input_image_sizes": {0: [[0, num_image]]},
        "attention_mask": torch.ones(1, length, length),
        "position_ids": torch.arange(length)[None],
        "return_dict": False,
    }


VARIANTS = (
    Variant("SanaTransformer2DModel", lambda: sana(sprint=False), sana_inputs),
    Variant("SanaTransformer2DModel-sprint", lambda: sana(sprint=True), sprint_inputs),
    Variant("HunyuanDiT2DModel", hunyuan_dit, hunyuan_dit_inputs, attends="the T5 text is pooled by attention"),
    Variant("PRXTransformer2DModel", prx, prx_inputs),
    Variant(
        "OmniGenTransformer2DModel",
        omnigen,
        omnigen_inputs,
        broken="the largest position chooses the factors of the rotary table",
        ascending=True,
    ),
)
