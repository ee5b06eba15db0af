"""What is timed: geometry of published models with random weights (speed does not depend on their values)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel

Inputs = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Workload:
    """A model and the arguments of its call at each step of a 50-step run."""

    name: str
    model: torch.nn.Module
    inputs: Inputs


def dit_s2() -> Workload:
    """DiT-S/2 at 256x256: 12 blocks, width 384, 256 tokens, guidance batch 2 (arXiv 2212.09748, table 1)."""
    return _dit("DiT-S/2", num_layers=12, num_heads=6, head_dim=64, sample_size=32)


def dit_xl2(num_layers: int = 28) -> Workload:
    """DiT-XL/2 at 256x256: 28 blocks, width 1152, 256 tokens, guidance batch 2 (arXiv 2212.09748, table 1)."""
    return _dit("DiT-XL/2", num_layers=num_layers, num_heads=16, head_dim=72, sample_size=32)


def tiny_dit() -> Workload:
    """One block of width 16: nothing but overhead."""
    return _dit("tiny DiT", num_layers=1, num_heads=1, head_dim=16, sample_size=4)


def flux_narrow() -> Workload:
    """The graph of FLUX.1-dev, 19 double and 38 single blocks, at a width of 64 in place of 3072: as long to compile."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=16,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    ).eval()
    tensors = {
        "hidden_states": torch.randn(1, 64, 16),
        "encoder_hidden_states": torch.randn(1, 32, 64),
        "pooled_projections": torch.randn(1, 32),
        "guidance": torch.full((1,), 3.5),
        "img_ids": torch.zeros(64, 3),
        "txt_ids": torch.zeros(32, 3),
    }

    def inputs(step: int) -> dict[str, Any]:
        return {**tensors, "timestep": torch.full((1,), 1 - step % 50 / 50), "return_dict": False}

    return Workload("FLUX.1-dev, narrow", model.requires_grad_(False), inputs)


def _dit(name: str, *, num_layers: int, num_heads: int, head_dim: int, sample_size: int) -> Workload:
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=num_heads,
        attention_head_dim=head_dim,
        in_channels=4,
        out_channels=8,
        num_layers=num_layers,
        sample_size=sample_size,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    ).eval()
    latents = torch.randn(2, 4, sample_size, sample_size)
    labels = torch.tensor([207, 1000])

    def inputs(step: int) -> dict[str, Any]:
        timestep = torch.full((2,), 981 - 20 * (step % 50))
        return {"hidden_states": latents, "timestep": timestep, "class_labels": labels, "return_dict": False}

    return Workload(name, model.requires_grad_(False), inputs)
