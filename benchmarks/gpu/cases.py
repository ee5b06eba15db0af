"""What is measured: geometry of published models, their schedulers, and inputs of the shapes that their pipelines make."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    SD3Transformer2DModel,
)
from torch import Tensor, nn


@dataclass(frozen=True)
class Setting:
    """One way to run ours: full at the first ``warmup`` steps, then every ``interval``-th."""

    order: int
    interval: int
    warmup: int = 3
    granularity: str = "module"


@dataclass(frozen=True)
class Case:
    """A model at a resolution: how to make it, its latents, its arguments, its scheduler, and the settings it is run in.

    ``arguments(latents, time)`` are those of a call; ``noise`` takes what the scheduler is given from the output. ``depths``:
    shares of the blocks that may be built, the largest that fits in time is taken.
    """

    name: str
    settings: tuple[Setting, ...]
    make: Callable[[float], nn.Module]
    latents: tuple[int, ...]
    conditions: Mapping[str, tuple[int, ...]]
    time: Callable[[float], float]
    scheduler: Callable[[int], Any]
    noise: Callable[[Tensor], Tensor] = lambda output: output
    integers: Mapping[str, int] = field(default_factory=dict)
    depths: tuple[float, ...] = (1.0,)
    weight: int = 1  # its share of the time


def cases(small: bool) -> list[Case]:
    """In the order in which they are measured: what matters most comes first, should time run out."""
    return [_flux(small), _dit(2, small), _dit(64, small), _sd3(small), _hunyuan_video(small)]


def _grid(orders: tuple[int, ...], intervals: tuple[int, ...], warmup: int = 3) -> tuple[Setting, ...]:
    return tuple(
        Setting(order, interval, warmup, name) for order in orders for name in ("module", "stack") for interval in intervals
    )


def _flow_match(shift: float, mu: float | None = None) -> Callable[[int], Any]:
    def make(num_steps: int) -> Any:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=mu is not None)
        sigmas = np.linspace(1.0, 1 / num_steps, num_steps)
        scheduler.set_timesteps(sigmas=sigmas, mu=mu) if mu is not None else scheduler.set_timesteps(sigmas=sigmas)
        scheduler.set_begin_index(0)
        return scheduler

    return make


def _ddim(num_steps: int) -> Any:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(num_steps)
    return scheduler


def _flux(small: bool) -> Case:
    """FLUX.1-dev at 1024x1024: 19 double and 38 single blocks, 12 B parameters, 4096 image and 512 text tokens."""
    tiny = {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "axes_dims_rope": (2, 2, 4),
    }
    width, pooled, image, text = (16, 16, 16, 6) if small else (4096, 768, 4096, 512)
    config = dict(guidance_embeds=True, joint_attention_dim=width, pooled_projection_dim=pooled, **(tiny if small else {}))
    conditions = {
        "encoder_hidden_states": (1, text, width),
        "pooled_projections": (1, pooled),
        "guidance": (1,),
        "img_ids": (image, 3),
        "txt_ids": (text, 3),
    }
    return Case(
        "FLUX.1-dev 1024x1024",
        _grid((2, 1), (6, 5)),
        lambda _: FluxTransformer2DModel(**config),
        (1, image, 64),
        conditions,
        lambda t: t / 1000,
        _flow_match(3.0, mu=1.15),
        weight=4,
    )


def _dit(batch: int, small: bool) -> Case:
    """DiT-XL/2 at 256x256: 28 blocks of width 1152, 256 tokens (arXiv 2212.09748, table 1)."""
    layers, heads, dim, size = (2, 2, 8, 8) if small else (28, 16, 72, 32)

    def make(_: float) -> nn.Module:
        return DiTTransformer2DModel(
            num_layers=layers, num_attention_heads=heads, attention_head_dim=dim, sample_size=size, out_channels=8
        )

    return Case(
        f"DiT-XL/2 256x256, batch {batch}",
        _grid((2,), (5,)),
        make,
        (batch, 4, size, size),
        {},
        lambda t: t,
        _ddim,
        lambda output: output.chunk(2, dim=1)[0],
        {"class_labels": batch},
    )


def _sd3(small: bool) -> Case:
    """Stable Diffusion 3.5 medium at 1024x1024 with guidance in the batch: 24 blocks, 4096 image and 333 text tokens."""
    tiny = {
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "caption_projection_dim": 16,
        "dual_attention_layers": (0,),
    }
    full = {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "dual_attention_layers": tuple(range(13)),
    }
    width, pooled, text, size = (16, 16, 6, 8) if small else (4096, 2048, 333, 128)
    config = {
        "sample_size": size,
        "in_channels": 16,
        "joint_attention_dim": width,
        "pooled_projection_dim": pooled,
        "out_channels": 16,
    }
    config |= dict(pos_embed_max_size=384, qk_norm="rms_norm", **(tiny if small else full))
    return Case(
        "SD3.5-medium 1024x1024, batch 2",
        _grid((2,), (5,)),
        lambda _: SD3Transformer2DModel(**config),
        (2, 16, size, size),
        {"encoder_hidden_states": (2, text, width), "pooled_projections": (2, pooled)},
        lambda t: t,
        _flow_match(3.0),
    )


def _hunyuan_video(small: bool) -> Case:
    """HunyuanVideo at 480x640, 65 frames: 20 double and 40 single blocks, latent 17x60x80, 256 text tokens."""
    tiny = {"attention_head_dim": 16, "num_attention_heads": 2, "rope_axes_dim": (4, 6, 6), "num_refiner_layers": 1}
    width, pooled, text, latent = (16, 16, 6, (2, 8, 8)) if small else (4096, 768, 256, (17, 60, 80))
    blocks = 1 if small else 20

    def make(depth: float) -> nn.Module:
        layers = max(1, round(depth * blocks))
        config: dict[str, Any] = {"guidance_embeds": True, "text_embed_dim": width, "pooled_projection_dim": pooled}
        config |= dict(num_layers=layers, num_single_layers=2 * layers, **(tiny if small else {}))
        return HunyuanVideoTransformer3DModel(**config)

    conditions = {"encoder_hidden_states": (1, text, width), "pooled_projections": (1, pooled), "guidance": (1,)}
    return Case(
        "HunyuanVideo 480x640x65",
        _grid((1,), (5,), warmup=1),
        make,
        (1, 16, *latent),
        conditions,
        lambda t: t,
        _flow_match(7.0),
        integers={"encoder_attention_mask": text},
        depths=(1.0, 0.5, 0.25, 0.1),
        weight=2,
    )


@dataclass(frozen=True)
class Subject:
    """A case's model on a device, with the inputs that do not change from step to step."""

    case: Case
    model: nn.Module
    latents: Tensor
    conditions: dict[str, Tensor]

    @classmethod
    def of(cls, case: Case, device: torch.device, dtype: torch.dtype, depth: float = 1.0) -> "Subject":
        """Made where it will run, so that no weight crosses over; every parameter a small random number."""
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:
                model = case.make(depth).eval().requires_grad_(False)
                for name, parameter in model.named_parameters():
                    is_norm_scale = parameter.dim() == 1 and name.endswith("weight")
                    parameter.normal_(1.0 if is_norm_scale else 0.0, 0.02)
                conditions = {name: torch.randn(shape) for name, shape in case.conditions.items()}
                conditions |= cls._integers(case)
                latents = torch.randn(case.latents)
        finally:
            torch.set_default_dtype(before)
        return cls(case, model, latents, conditions)

    @staticmethod
    def _integers(case: Case) -> dict[str, Tensor]:
        """A mask over the tokens of a text, or one label a sample: ones do for both."""
        masks = {"encoder_attention_mask": lambda n: torch.ones(1, n, dtype=torch.long)}
        return {name: masks.get(name, lambda n: torch.ones(n, dtype=torch.long))(n) for name, n in case.integers.items()}

    def times(self, scheduler: Any) -> list[Tensor]:
        """What the model is told of each timestep, made ahead: a pipeline has them on the device, too."""
        batch, integer = self.latents.shape[0], not torch.is_floating_point(scheduler.timesteps)
        dtype = torch.long if integer else self.latents.dtype
        values = [self.case.time(float(t)) for t in scheduler.timesteps]
        return [torch.full((batch,), value, dtype=dtype, device=self.latents.device) for value in values]

    def call(self, denoiser: Callable[..., Any], latents: Tensor, time: Tensor) -> Tensor:
        output = denoiser(hidden_states=latents, timestep=time, return_dict=False, **self.conditions)[0]
        return self.case.noise(output)
