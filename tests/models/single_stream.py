"""Image models whose blocks work on one stream of tokens, text and image in a row or text read by cross-attention."""

from functools import partial

import torch
from diffusers import (
    BriaFibo2Transformer2DModel,
    ErnieImageTransformer2DModel,
    Ideogram4Transformer2DModel,
    Krea2Transformer2DModel,
)
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers import DreamLiteTransformer2DModel
from diffusers.models.transformers.transformer_ideogram4 import (
    IMAGE_POSITION_OFFSET,
    LLM_TOKEN_INDICATOR,
    OUTPUT_IMAGE_INDICATOR,
    SEQUENCE_PADDING_INDICATOR,
)
from diffusers.models.unets.unet_dreamlite import DreamLiteAttnProcessor2_0
from torch import nn

from tests.models.flux import image_ids
from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

TEXT = 8
PADDING = 2
GRID = 8


def ernie() -> nn.Module:
    return randomize(
        ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=4,
            num_layers=3,
            ffn_hidden_size=128,
            in_channels=4,
            out_channels=4,
            text_in_dim=16,
            rope_axes_dim=(2, 2, 4),
        )
    )


def ernie_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": smooth((1, 4, GRID, GRID), step, seed, torch.float32),
        "timestep": torch.full((1,), 1000.0 - 20 * step),
        "text_bth": noise((1, TEXT, 16), seed, torch.float32),
        "text_lens": torch.full((1,), TEXT - PADDING),
        "return_dict": False,
    }


def ideogram4() -> nn.Module:
    return randomize(
        Ideogram4Transformer2DModel(
            in_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            intermediate_size=128,
            adaln_dim=16,
            llm_features_dim=16,
            rope_theta=10_000,
            mrope_section=(2, 1, 1),
        )
    )


def ideogram4_inputs(step: float, seed: int) -> Inputs:
    """One sequence of padding, text and image, every token of latent and text width; time runs 0 -> 1."""
    length = TEXT + GRID * GRID
    latents = smooth((1, length, 4), step, seed, torch.float32)
    latents[:, :TEXT] = 0
    text = noise((1, length, 16), seed, torch.float32)
    text[:, :PADDING] = 0
    text[:, TEXT:] = 0
    positions = torch.zeros(1, length, 3, dtype=torch.long)
    positions[:, PADDING:TEXT] = torch.arange(TEXT - PADDING)[:, None]
    positions[:, TEXT:] = image_ids(GRID).long() + IMAGE_POSITION_OFFSET
    segments = torch.ones(1, length, dtype=torch.long)
    segments[:, :PADDING] = SEQUENCE_PADDING_INDICATOR
    indicator = torch.zeros(1, length, dtype=torch.long)
    indicator[:, PADDING:TEXT] = LLM_TOKEN_INDICATOR
    indicator[:, TEXT:] = OUTPUT_IMAGE_INDICATOR
    return {
        "hidden_states": latents,
        "encoder_hidden_states": text,
        "timestep": torch.full((1,), step / 50),
        "position_ids": positions,
        "segment_ids": segments,
        "indicator": indicator,
        "return_dict": False,
    }


def krea2() -> nn.Module:
    return randomize(
        Krea2Transformer2DModel(
            in_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=128,
            timestep_embed_dim=16,
            text_hidden_dim=16,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=64,
            num_layerwise_text_blocks=3,
            num_refiner_text_blocks=3,
            axes_dims_rope=(2, 2, 4),
        )
    )


def krea2_inputs(step: float, seed: int) -> Inputs:
    mask = torch.ones(1, TEXT, dtype=torch.bool)
    mask[:, -PADDING:] = False
    return {
        "hidden_states": smooth((1, GRID * GRID, 4), step, seed, torch.float32),
        "encoder_hidden_states": noise((1, TEXT, 3, 16), seed, torch.float32),
        "timestep": torch.full((1,), 1.0 - step / 50),
        "position_ids": torch.cat([torch.zeros(TEXT, 3), image_ids(GRID)]),
        "encoder_attention_mask": mask,
        "return_dict": False,
    }


def fibo2() -> nn.Module:
    """Three plain blocks and three injection blocks; the rotary table, made at the first use, Dynamo cannot trace."""
    model = BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=6,
        n_refiner_layers=3,
        n_heads=2,
        cap_feat_dim=16,
        injection_layer_ids=(1, 3, 5),
        perceiver_num_layers=3,
        min_num_gist_tokens=4,
        max_num_gist_tokens=16,
        gist_step=2,
        gist_min_text_len=2,
        gist_max_text_len=16,
        axes_dims=(4, 4, 8),
        axes_lens=(32, 32, 32),
    )
    model.rope_embedder(torch.zeros(1, 3, dtype=torch.long))
    return randomize(model)


def fibo2_inputs(step: float, seed: int, batch: int = 1) -> Inputs:
    """Text features for the Perceiver and for each of three injections; time runs 1 -> 0."""
    return {
        "hidden_states": smooth((batch, 4, 24, 24), step, seed, torch.float32),
        "timestep": torch.full((batch,), 1.0 - step / 50),
        "encoder_hidden_states": noise((batch, 4, TEXT, 16), seed, torch.float32),
        "return_dict": False,
    }


def fibo2_mask_inputs(step: float, seed: int) -> Inputs:
    """Two prompts of unequal length: the shorter one's padding is masked, of its gist tokens too."""
    mask = torch.ones(2, TEXT, dtype=torch.bool)
    mask[1, -4:] = False
    return fibo2_inputs(step, seed, batch=2) | {"encoder_attention_mask": mask}


def dreamlite(use_self_attention: bool) -> nn.Module:
    """As the U-Net makes it: with its own processor, which alone can have fewer keys than queries and normalise them."""
    model = DreamLiteTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=32,
        num_layers=3,
        norm_num_groups=4,
        cross_attention_dim=16,
        use_linear_projection=True,
        use_self_attention=use_self_attention,
        qk_norm="rms_norm",
        num_kv_heads=2,
    )
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(DreamLiteAttnProcessor2_0())
    return randomize(model)


def dreamlite_inputs(step: float, seed: int) -> Inputs:
    mask = torch.ones(1, TEXT, dtype=torch.bool)
    mask[:, -PADDING:] = False
    return {
        "hidden_states": smooth((1, 32, GRID, GRID), step, seed, torch.float32),
        "encoder_hidden_states": noise((1, TEXT, 16), seed, torch.float32),
        "encoder_attention_mask": mask[:, None],
        "return_dict": False,
    }


GISTS = "the mask's sums, read as numbers, decide how many gist tokens there are"
UNET = "a part of a U-Net, whose convolutional blocks take the time"

VARIANTS = (
    Variant("ErnieImageTransformer2DModel", ernie, ernie_inputs),
    Variant("Ideogram4Transformer2DModel", ideogram4, ideogram4_inputs, ascending=True),
    Variant("Krea2Transformer2DModel", krea2, krea2_inputs),
    Variant("BriaFibo2Transformer2DModel", fibo2, fibo2_inputs),
    Variant("BriaFibo2Transformer2DModel-mask", fibo2, fibo2_mask_inputs, broken=GISTS),
    Variant("DreamLiteTransformer2DModel", partial(dreamlite, use_self_attention=True), dreamlite_inputs, untimed=UNET),
    Variant(
        "DreamLiteTransformer2DModel-no_self_attention",
        partial(dreamlite, use_self_attention=False),
        dreamlite_inputs,
        untimed=UNET,
    ),
)
