"""The digits model: a plain diffusers ``DiTTransformer2DModel``, 2 M parameters, 64 tokens, class-conditional."""

from pathlib import Path
from typing import Any

from diffusers import DiTTransformer2DModel

from taylorseer_fx.half_weights import load_half

WEIGHTS_PATH = Path(__file__).with_name("digits_dit.safetensors")

DIGITS_CONFIG: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 1,
    "out_channels": 1,
    "num_layers": 6,
    "sample_size": 8,
    "patch_size": 1,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 10,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}


def build_digits_model() -> DiTTransformer2DModel:
    """The architecture with fresh weights, in evaluation mode.

    Evaluation mode also for training: in training mode every block of diffusers' DiT drops class labels on its own, so one
    forward would be conditional in some blocks and unconditional in others. The trainer drops labels itself.
    """
    return DiTTransformer2DModel(**DIGITS_CONFIG).eval()


def load_digits_model() -> DiTTransformer2DModel:
    """The trained model in float32."""
    return load_half(build_digits_model(), WEIGHTS_PATH)
