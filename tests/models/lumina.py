"""Lumina and Z-Image: sandwich norms, tanh gates, refiner blocks for text and image before the common ones."""

import torch
from diffusers import Lumina2Transformer2DModel, LuminaNextDiT2DModel, ZImageTransformer2DModel
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from torch import Tensor, nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

SIZE = 16
GRID = SIZE // 2
TEXT = 16
WIDTH = 48
HEADS = 4


def latents(step: float, seed: int) -> Tensor:
    return smooth((1, 4, SIZE, SIZE), step, seed, torch.float32)


def text_mask() -> Tensor:
    return torch.arange(TEXT)[None] < TEXT - 2


def lumina_next() -> nn.Module:
    """Self- and cross-attention summed in one branch, the latter behind a learned gate."""
    return randomize(
        LuminaNextDiT2DModel(
            sample_size=SIZE,
            hidden_size=WIDTH,
            num_layers=3,
            num_attention_heads=HEADS,
            num_kv_heads=2,
            multiple_of=16,
            learn_sigma=False,
            cross_attention_dim=16,
        )
    )


def lumina_next_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": latents(step, seed),
        "timestep": torch.full((1,), step / 50),
        "encoder_hidden_states": noise((1, TEXT, 16), seed, torch.float32),
        "encoder_mask": text_mask().long(),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(WIDTH // HEADS, GRID, GRID),
        "cross_attention_kwargs": {},
        "return_dict": False,
    }


def lumina2() -> nn.Module:
    return randomize(
        Lumina2Transformer2DModel(
            sample_size=SIZE,
            in_channels=4,
            hidden_size=WIDTH,
            num_layers=3,
            num_refiner_layers=3,
            num_attention_heads=HEADS,
            num_kv_heads=2,
            multiple_of=2,
            axes_dim_rope=(4, 4, 4),
            axes_lens=(96, 16, 16),
            cap_feat_dim=16,
        )
    )


def lumina2_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": latents(step, seed),
        "timestep": torch.full((1,), step / 50),
        "encoder_hidden_states": noise((1, TEXT, 16), seed, torch.float32),
        "encoder_attention_mask": text_mask(),
        "return_dict": False,
    }


def z_image(*, refiners: int = 2, omni: bool = False) -> nn.Module:
    model = randomize(
        ZImageTransformer2DModel(
            in_channels=16,
            dim=WIDTH,
            n_layers=3,
            n_refiner_layers=refiners,
            n_heads=HEADS,
            n_kv_heads=HEADS,
            cap_feat_dim=16,
            siglip_feat_dim=16 if omni else None,
            axes_dims=[4, 4, 4],
            axes_lens=[160, 16, 16],
        )
    )
    # The first call makes the rotary tables, on which the compiled code of that call would be guarded.
    model.rope_embedder(torch.zeros(1, 3, dtype=torch.int32))
    return model


def z_image_latents(step: float, seed: int) -> Tensor:
    return smooth((16, 1, SIZE, SIZE), step, seed, torch.float32)


def z_image_inputs(step: float, seed: int) -> Inputs:
    return {
        "x": [z_image_latents(step, seed)],
        "t": torch.full((1,), step / 50),
        "cap_feats": [noise((TEXT, 16), seed, torch.float32)],
        "return_dict": False,
    }


def control_inputs(step: float, seed: int) -> Inputs:
    """A ControlNet's residuals, added to the stream after two of the blocks."""
    controls = {i: smooth((1, GRID * GRID + 32, WIDTH), step, seed + 3 + i, torch.float32) for i in (0, 2)}
    return {**z_image_inputs(step, seed), "controlnet_block_samples": controls}


def omni_inputs(step: float, seed: int) -> Inputs:
    """One condition image, with its SigLIP features, before the image that is denoised."""
    return {
        "x": [[noise((16, 1, SIZE, SIZE), seed + 1, torch.float32), z_image_latents(step, seed)]],
        "t": torch.full((1,), step / 50),
        "cap_feats": [[noise((TEXT, 16), seed + i, torch.float32) for i in range(2)]],
        "siglip_feats": [[noise((4, 4, 16), seed + 2, torch.float32), None]],
        "image_noise_mask": [[0, 1]],
        "return_dict": False,
    }


VARIANTS = (
    Variant("LuminaNextDiT2DModel", lumina_next, lumina_next_inputs, ascending=True),
    Variant(
        "Lumina2Transformer2DModel",
        lumina2,
        lumina2_inputs,
        broken="the lengths of the texts are read from their mask",
        ascending=True,
    ),
    Variant("ZImageTransformer2DModel", lambda: z_image(refiners=3), z_image_inputs, ascending=True),
    Variant("ZImageTransformer2DModel-control", z_image, control_inputs, ascending=True),
    Variant("ZImageTransformer2DModel-omni", lambda: z_image(omni=True), omni_inputs, ascending=True),
)
