"""Small Diffusion Transformers with every parameter random and live, and inputs that move as in a denoising loop.

Models are initialised so that nothing is zero (adaLN-zero and zeroed output layers would make every test blind), sizes are a few
thousand parameters, and the inputs of a step are a smooth function of it, in fixed pseudo-random directions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, sin
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor, nn

from taylorseer_fx.bench.pipelines import noise, randomize

Inputs = dict[str, Any]


@dataclass(frozen=True)
class ZooModel:
    """A model with what a test has to know about it.

    ``inputs(step, seed=0, batch=2)`` are the keyword arguments of a step of a 50-step generation; another seed is another
    prompt and other noise. ``feature_modules`` produce the features, ``kinds`` counts the regions that should be found, and
    ``num_features`` the tensors forecast (joint attention has two, but the last text update of SD3 is read by nobody).
    """

    name: str
    model: nn.Module
    inputs: Callable[..., Inputs]
    feature_modules: list[nn.Module]
    kinds: dict[str, int]
    num_features: int


def smooth(shape: tuple[int, ...], step: float, seed: int, dtype: torch.dtype) -> Tensor:
    """A tensor that moves smoothly with the step, from one noise tensor through others."""
    generator = torch.Generator().manual_seed(1000 + seed)
    a, b, c = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    u = step / 50
    return (a * cos(2 * u) + b * sin(3 * u) + c * u * u).to(dtype)


@contextmanager
def attention_backend_kept() -> Iterator[None]:
    """Diffusers keeps the last attention backend set on any model as that of all models which have none of their own."""
    before, _ = _AttentionBackendRegistry.get_active_backend()
    try:
        yield
    finally:
        _AttentionBackendRegistry.set_active_backend(AttentionBackendName(before))


def dit(dtype: torch.dtype = torch.float32, head_dim: int = 8, size: int = 8, num_layers: int = 2) -> ZooModel:
    """Class-conditional, adaLN-zero: a gate on every branch; integer timesteps."""
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=head_dim,
        in_channels=4,
        out_channels=8,
        num_layers=num_layers,
        sample_size=size,
        patch_size=2,
        num_embeds_ada_norm=10,
        activation_fn="gelu-approximate",
    )

    def inputs(step: float, seed: int = 0, batch: int = 2) -> Inputs:
        return {
            "hidden_states": smooth((batch, 4, size, size), step, seed, dtype),
            "timestep": torch.full((batch,), int(980 - 20 * step)),
            "class_labels": (torch.arange(batch) + seed) % 10,
            "return_dict": False,
        }

    blocks = model.transformer_blocks
    modules = [module for block in blocks for module in (block.attn1, block.ff)]
    return ZooModel("dit", randomize(model, dtype), inputs, modules, {"attention": num_layers, "mlp": num_layers}, 2 * num_layers)


def flux(dtype: torch.dtype = torch.float32) -> ZooModel:
    """Two double blocks with joint attention, two parallel single blocks, a guidance embedding beside the timestep's."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[2, 2, 4],
        guidance_embeds=True,
    )
    rows = torch.arange(16)
    img_ids = torch.stack([torch.zeros(16), rows // 4, rows % 4], dim=1)

    def inputs(step: float, seed: int = 0, batch: int = 2) -> Inputs:
        return {
            "hidden_states": smooth((batch, 16, 4), step, seed, dtype),
            "encoder_hidden_states": noise((batch, 6, 16), seed, dtype),
            "pooled_projections": noise((batch, 16), seed + 1, dtype),
            "timestep": torch.full((batch,), 1.0 - step / 50, dtype=dtype),
            "guidance": torch.full((batch,), 3.5, dtype=torch.float32),
            "img_ids": img_ids,
            "txt_ids": torch.zeros(6, 3),
            "return_dict": False,
        }

    modules: list[nn.Module] = []
    for block in model.transformer_blocks:
        modules += [block.attn, block.ff, block.ff_context]
    modules += [block.proj_out for block in model.single_transformer_blocks]
    kinds = {"attention": 2, "mlp": 4, "attention+mlp": 2}
    return ZooModel("flux", randomize(model, dtype), inputs, modules, kinds, 10)


def sd3(dtype: torch.dtype = torch.float32, num_layers: int = 3) -> ZooModel:
    """Joint attention whose last block updates the image only; resolution is free, so it serves dynamic shapes too."""
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=num_layers,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=12,
    )

    def inputs(step: float, seed: int = 0, batch: int = 2, size: int = 8) -> Inputs:
        return {
            "hidden_states": smooth((batch, 4, size, size), step, seed, dtype),
            "encoder_hidden_states": noise((batch, 6, 16), seed, dtype),
            "pooled_projections": noise((batch, 16), seed + 1, dtype),
            "timestep": torch.full((batch,), 1000.0 - 20 * step, dtype=dtype),
            "return_dict": False,
        }

    modules: list[nn.Module] = []
    for block in model.transformer_blocks:
        modules += [block.attn, block.ff]
        modules += [block.ff_context] if block.ff_context is not None else []
    kinds = {"attention": num_layers, "mlp": 2 * num_layers - 1}
    return ZooModel("sd3", randomize(model, dtype), inputs, modules, kinds, 4 * num_layers - 2)


def pixart(dtype: torch.dtype = torch.float32) -> ZooModel:
    """Self-attention, ungated cross-attention and MLP; one modulation shared by all blocks."""
    model = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        use_additional_conditions=False,
    )

    def inputs(step: float, seed: int = 0, batch: int = 2) -> Inputs:
        return {
            "hidden_states": smooth((batch, 4, 8, 8), step, seed, dtype),
            "encoder_hidden_states": noise((batch, 6, 16), seed, dtype),
            "timestep": torch.full((batch,), int(980 - 20 * step)),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            "return_dict": False,
        }

    modules = [module for block in model.transformer_blocks for module in (block.attn1, block.attn2, block.ff)]
    return ZooModel("pixart", randomize(model, dtype), inputs, modules, {"attention": 4, "mlp": 2}, 6)


MODELS: dict[str, Callable[..., ZooModel]] = {"dit": dit, "flux": flux, "sd3": sd3, "pixart": pixart}


class TinyAttention(nn.Module):
    """Attention of one head, spelled out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2) / x.shape[-1] ** 0.5
        return self.out(scores.softmax(-1) @ self.value(x))


class Tiny(nn.Module):
    """The least Diffusion Transformer, quick to compile: ``x + gate(t) * attention(x)``, then ``x + mlp(x)``.

    ``timed=False`` takes the gate from a constant, so that no input tells the time.
    """

    def __init__(self, width: int = 32, timed: bool = True) -> None:
        super().__init__()
        self.timed = timed
        self.register_buffer("frequencies", torch.logspace(0, -2, 16))
        self.gate = nn.Linear(32, width)
        self.attention = TinyAttention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, timestep: Tensor, prompt: Tensor | None = None) -> Tensor:
        phase = timestep[:, None] * self.frequencies if self.timed else self.frequencies.expand(len(x), -1)
        gate = self.gate(torch.cat([phase.sin(), phase.cos()], dim=-1))
        if prompt is not None:
            gate = gate + prompt
        x = x + gate[:, None] * self.attention(x)
        return x + self.mlp(x)


def tiny(timed: bool = True) -> Tiny:
    model = Tiny(timed=timed)
    randomize(model)
    return model


def tiny_inputs(
    step: float, seed: int = 0, batch: int = 2, num_steps: int = 50, length: int = 6, prompt: float | None = None
) -> Inputs:
    """Keyword arguments of ``Tiny`` at a step; with another ``num_steps`` the timesteps are spaced otherwise."""
    conditioning = {"prompt": torch.tensor([[prompt]])} if prompt is not None else {}
    return {
        "x": smooth((batch, length, 32), step * 50 / num_steps, seed, torch.float32),
        "timestep": torch.full((batch,), 1000.0 * (1 - step / num_steps)),
        **conditioning,
    }
