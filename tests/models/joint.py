"""Image models with joint attention of text and image, besides FLUX and Qwen-Image and their kin."""

from functools import partial

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    GlmImageTransformer2DModel,
    HiDreamImageTransformer2DModel,
    HunyuanImageTransformer2DModel,
    SD3Transformer2DModel,
)
from torch import nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

TEXT = 8
PADDING = 2


def image_inputs(step: float, seed: int, size: int = 16) -> Inputs:
    """Latents to be cut into patches of 2 x 2, and text; time runs 1000 -> 0."""
    return {
        "hidden_states": smooth((1, 4, size, size), step, seed, torch.float32),
        "encoder_hidden_states": noise((1, TEXT, 16), seed, torch.float32),
        "timestep": torch.full((1,), 1000.0 - 20 * step),
        "return_dict": False,
    }


def text_mask() -> torch.Tensor:
    mask = torch.ones(1, TEXT)
    mask[:, -PADDING:] = 0
    return mask


def sd3(dual: bool) -> nn.Module:
    """SD3, or SD3.5 medium: a second attention of the image to itself in the first blocks, normalised queries and keys."""
    return randomize(
        SD3Transformer2DModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            num_layers=4 if dual else 3,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=16,
            caption_projection_dim=32,
            pooled_projection_dim=16,
            pos_embed_max_size=16,
            dual_attention_layers=(0, 1, 2) if dual else (),
            qk_norm="rms_norm" if dual else None,
        )
    )


def sd3_inputs(step: float, seed: int) -> Inputs:
    return image_inputs(step, seed) | {"pooled_projections": noise((1, 16), seed + 1, torch.float32)}


def aura_flow() -> nn.Module:
    return randomize(
        AuraFlowTransformer2DModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=3,
            num_single_dit_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pos_embed_max_size=64,
        )
    )


def aura_flow_inputs(step: float, seed: int) -> Inputs:
    return image_inputs(step, seed) | {"timestep": torch.full((1,), 1.0 - step / 50)}


def cogview3plus() -> nn.Module:
    return randomize(
        CogView3PlusTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            text_embed_dim=16,
            time_embed_dim=32,
            condition_dim=8,
            pos_embed_max_size=16,
            sample_size=16,
        )
    )


def cogview4() -> nn.Module:
    return randomize(
        CogView4Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            text_embed_dim=16,
            time_embed_dim=32,
            condition_dim=8,
            pos_embed_max_size=16,
            sample_size=16,
            rope_axes_dim=(16, 16),
        )
    )


def cogview_inputs(step: float, seed: int) -> Inputs:
    """The sizes are embedded by sines and cosines as the time is, but do not change.

    The time's embedding is 32 wide: one vector of at most 16 Inductor multiplies with a matrix by pointwise operators on a CPU.
    """
    size = torch.full((1, 2), 16.0)
    return image_inputs(step, seed) | {"original_size": size, "target_size": size, "crop_coords": torch.zeros(1, 2)}


def glm_image() -> nn.Module:
    return randomize(
        GlmImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            text_embed_dim=16,
            time_embed_dim=32,
            condition_dim=8,
            prior_vq_quantizer_codebook_size=32,
        )
    )


def glm_image_inputs(step: float, seed: int) -> Inputs:
    """Tokens of an autoregressive model, one a patch, are added to the image; time runs 999 -> 0."""
    generator = torch.Generator().manual_seed(seed)
    inputs = image_inputs(step, seed, size=24)
    return inputs | {
        "timestep": inputs["timestep"] - 1,
        "prior_token_id": torch.randint(0, 32, (1, 144), generator=generator),
        "prior_token_drop": torch.zeros(1, 144, dtype=torch.bool),
        "target_size": torch.full((1, 2), 24.0),
        "crop_coords": torch.zeros(1, 2),
    }


def hunyuan_image(byt5: bool, meanflow: bool = False) -> nn.Module:
    return randomize(
        HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=4,
            attention_head_dim=8,
            num_layers=3,
            num_single_layers=3,
            num_refiner_layers=3,
            text_embed_dim=16,
            text_embed_2_dim=8 if byt5 else None,
            rope_axes_dim=(4, 4),
            guidance_embeds=meanflow,
            use_meanflow=meanflow,
        )
    )


def hunyuan_image_inputs(step: float, seed: int) -> Inputs:
    return image_inputs(step, seed, size=12) | {"encoder_attention_mask": text_mask()}


def hunyuan_image_byt5_inputs(step: float, seed: int) -> Inputs:
    """A second text encoder, for glyphs, whose valid tokens are put before the first one's."""
    mask = torch.ones(1, 6)
    mask[:, -PADDING:] = 0
    return hunyuan_image_inputs(step, seed) | {
        "encoder_hidden_states_2": noise((1, 6, 8), seed + 1, torch.float32),
        "encoder_attention_mask_2": mask,
    }


def hunyuan_image_meanflow_inputs(step: float, seed: int) -> Inputs:
    """The distilled model: it is told the next step's time and the guidance too."""
    return hunyuan_image_inputs(step, seed) | {
        "timestep_r": torch.full((1,), 1000.0 - 20 * (step + 1)),
        "guidance": torch.full((1,), 3500.0),
    }


def hidream() -> nn.Module:
    return randomize(
        HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[16, 8],
            text_emb_dim=16,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(16, 16),
            llama_layers=[0, 1, 2, 2, 3, 3],
        )
    )


def hidream_inputs(step: float, seed: int) -> Inputs:
    """Every block gets a layer of the language model's as text, and drops it again."""
    inputs = image_inputs(step, seed)
    return {
        "hidden_states": inputs["hidden_states"],
        "timesteps": inputs["timestep"],
        "encoder_hidden_states_t5": inputs["encoder_hidden_states"],
        "encoder_hidden_states_llama3": noise((4, 1, TEXT, 8), seed + 1, torch.float32),
        "pooled_embeds": noise((1, 16), seed + 2, torch.float32),
        "return_dict": False,
    }


REORDER = "boolean masks sort the tokens of the two text encoders"
EXPERTS = "a mixture of experts counts the tokens of each expert in NumPy"

VARIANTS = (
    Variant("SD3Transformer2DModel", partial(sd3, dual=False), sd3_inputs),
    Variant("SD3Transformer2DModel-dual_attention", partial(sd3, dual=True), sd3_inputs),
    Variant("AuraFlowTransformer2DModel", aura_flow, aura_flow_inputs),
    Variant("CogView3PlusTransformer2DModel", cogview3plus, cogview_inputs),
    Variant("CogView4Transformer2DModel", cogview4, cogview_inputs),
    Variant("GlmImageTransformer2DModel", glm_image, glm_image_inputs, fullgraph=True),
    Variant("HunyuanImageTransformer2DModel", partial(hunyuan_image, byt5=False), hunyuan_image_inputs),
    Variant(
        "HunyuanImageTransformer2DModel-meanflow",
        partial(hunyuan_image, byt5=False, meanflow=True),
        hunyuan_image_meanflow_inputs,
    ),
    Variant("HunyuanImageTransformer2DModel-byt5", partial(hunyuan_image, byt5=True), hunyuan_image_byt5_inputs, broken=REORDER),
    Variant("HiDreamImageTransformer2DModel", hidream, hidream_inputs, broken=EXPERTS),
)
