"""The workloads that are timed. Step workloads are a model and its inputs per step; pipeline workloads are real pipelines.

Of published geometry, with random weights (speed does not depend on their values), but for the digits, which are trained.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel, SD3Transformer2DModel, WanTransformer3DModel
from torch import nn

from taylorseer_fx.bench import models
from taylorseer_fx.bench.pipelines import (
    TEXT_WIDTH,
    Kwargs,
    dit_kwargs,
    dit_pipeline,
    flux_kwargs,
    flux_pipeline,
    randomize,
    sampling,
    sd3_kwargs,
    sd3_pipeline,
    tiny_vae,
    tiny_wan_vae,
    wan_kwargs,
    wan_pipeline,
)
from taylorseer_fx.bench.shipped_pipelines import shipped_kwargs, shipped_pipeline
from taylorseer_fx.shipped import DIGITS, FASHION, Shipped

Inputs = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Workload:
    """A model and the arguments of its call at each step of a 50-step run."""

    name: str
    model: nn.Module
    inputs: Inputs


def dit_s2() -> Workload:
    """DiT-S/2 at 256x256: 12 blocks, width 384, 256 tokens, guidance batch 2."""
    return _dit("DiT-S/2", models.dit_s2)


def dit_xl2(num_layers: int = 28) -> Workload:
    """DiT-XL/2 at 256x256: 28 blocks, width 1152, 256 tokens, guidance batch 2."""
    return _dit("DiT-XL/2", partial(models.dit_xl2, num_layers))


def tiny_dit() -> Workload:
    """One block of width 16: nothing but overhead."""
    return _dit("tiny DiT", _one_block)


def _one_block() -> Any:
    return models.dit(num_layers=1, num_heads=1, head_dim=16, sample_size=4)


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


def _dit(name: str, build: Callable[[], nn.Module]) -> Workload:
    model = _frozen(build)
    size = model.config.sample_size
    latents = torch.randn(2, 4, size, size)
    labels = torch.tensor([207, 1000])

    def inputs(step: int) -> dict[str, Any]:
        timestep = torch.full((2,), 981 - 20 * (step % 50))
        return {"hidden_states": latents, "timestep": timestep, "class_labels": labels, "return_dict": False}

    return Workload(name, model, inputs)


def _frozen(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return build().eval().requires_grad_(False)


@dataclass(frozen=True)
class Features:
    """For methods that must be told modules by name: ``cached`` return what is forecast; ``idle`` do nothing on forecast steps
    that anybody reads. Regular expressions over the transformer's module names, matched in full.
    """

    cached: tuple[str, ...]
    idle: tuple[str, ...] = ()


@dataclass(frozen=True)
class PipelineWorkload:
    """A pipeline, and its arguments for a run of so many steps from the noise of a seed.

    ``calls_a_step``: 2 where guidance calls the transformer twice. ``shipped``: the trained model that it is, whose quality means
    something; None where weights are random. ``reduced``: what is smaller than in the published model. ``vision``: the noisy
    samples ``[c, t, h, w]`` in a call's arguments and its noise level, for a peer that has to be told.
    """

    name: str
    build: Callable[[], DiffusionPipeline]
    kwargs: Callable[[int, int], Kwargs]
    features: Features
    num_steps: int = 50
    calls_a_step: int = 1
    shipped: Shipped | None = None
    reduced: str = ""
    vision: Callable[[dict[str, Any]], tuple[list[torch.Tensor], float]] | None = None

    @property
    def trained(self) -> bool:
        """Whether the weights are."""
        return self.shipped is not None


_PLAIN_BLOCKS = Features(cached=(r"transformer_blocks\.\d+\.(attn1|ff)",))
_FLUX_BLOCKS = Features(
    cached=(r"transformer_blocks\.\d+\.(attn|ff|ff_context)", r"single_transformer_blocks\.\d+\.proj_out"),
    idle=(r"single_transformer_blocks\.\d+\.(attn|proj_mlp|act_mlp)",),
)
_JOINT_BLOCKS = Features(cached=(r"transformer_blocks\.\d+\.(attn|ff|ff_context)",))
_WAN_BLOCKS = Features(cached=(r"blocks\.\d+\.(attn1|attn2|ffn)",))


def digits(num_images: int = 20, num_steps: int = 50) -> PipelineWorkload:
    """The smaller of the trained models that ship in the package."""
    kwargs = partial(shipped_kwargs, num_images)
    return PipelineWorkload("digits", partial(shipped_pipeline, DIGITS), kwargs, _PLAIN_BLOCKS, num_steps, shipped=DIGITS)


def fashion(num_images: int = 10, num_steps: int = 50) -> PipelineWorkload:
    """The larger one, of FLUX's architecture."""
    kwargs, vision = partial(shipped_kwargs, num_images), _vision_of_tokens
    build = partial(shipped_pipeline, FASHION)
    return PipelineWorkload("fashion", build, kwargs, _FLUX_BLOCKS, num_steps, shipped=FASHION, vision=vision)


def _vision_of_tokens(arguments: dict[str, Any]) -> tuple[list[torch.Tensor], float]:
    """The inputs of FLUX: tokens ``[n, h * w, c]`` of a square picture, and the time, which is the noise level of its flow."""
    tokens = arguments["hidden_states"]
    side = math.isqrt(tokens.shape[1])
    return list(tokens.transpose(1, 2).reshape(len(tokens), -1, 1, side, side)), float(arguments["timestep"][0])


def dit_xl2_256(num_layers: int = 28, num_steps: int = 50) -> PipelineWorkload:
    """DiT-XL/2 at 256x256, guidance batch 2."""
    return PipelineWorkload(
        "DiT-XL/2 256",
        lambda: dit_pipeline(_frozen(partial(models.dit_xl2, num_layers))),
        dit_kwargs,
        _PLAIN_BLOCKS,
        num_steps,
        reduced=_of("28 blocks", f"{num_layers} blocks", num_layers < 28),
    )


def flux(num_layers: int = 1, num_single_layers: int = 1, size: int = 64, num_steps: int = 20) -> PipelineWorkload:
    """FLUX.1-dev at full width, ``size`` x ``size`` pixels."""
    text_length, tokens = 16, (size // 16) ** 2
    return PipelineWorkload(
        "FLUX.1-dev",
        lambda: flux_pipeline(_frozen(partial(models.flux, num_layers, num_single_layers))),
        partial(flux_kwargs, size=size, length=text_length, width=4096, pooled_width=768),
        _FLUX_BLOCKS,
        num_steps,
        reduced=f"{num_layers} double and {num_single_layers} single blocks of 19 and 38, {tokens} image and {text_length} "
        "text tokens of 4096 and 512",
    )


def sd3(num_layers: int = 3, size: int = 128, num_steps: int = 20) -> PipelineWorkload:
    """SD3-medium at full width, guidance batch 2."""
    text_length, tokens = 32, (size // 16) ** 2
    return PipelineWorkload(
        "SD3-medium",
        lambda: sd3_pipeline(_frozen(partial(models.sd3_medium, num_layers))),
        partial(sd3_kwargs, size=size, length=text_length, width=4096, pooled_width=2048),
        _JOINT_BLOCKS,
        num_steps,
        reduced=f"{num_layers} blocks of 24, {tokens} image and {text_length} text tokens of 4096 and 333",
    )


def wan(num_layers: int = 2, size: int = 64, num_frames: int = 9, num_steps: int = 20) -> PipelineWorkload:
    """Wan 2.1 1.3B at full width; guidance is two calls a step."""
    text_length, tokens = 32, (size // 16) ** 2 * ((num_frames - 1) // 4 + 1)
    return PipelineWorkload(
        "Wan 2.1 1.3B",
        lambda: wan_pipeline(_frozen(partial(models.wan_1_3b, num_layers))),
        partial(wan_kwargs, size=size, num_frames=num_frames, length=text_length, width=4096),
        _WAN_BLOCKS,
        num_steps,
        calls_a_step=2,
        reduced=f"{num_layers} blocks of 30, {tokens} video and {text_length} text tokens of 32760 and 512",
    )


def _of(full: str, reduced: str, is_reduced: bool) -> str:
    return f"{reduced} of {full}" if is_reduced else ""


def tiny_dit_transformer() -> nn.Module:
    """Two blocks of width 16, every parameter random."""
    return randomize(models.dit(num_layers=2, num_heads=2, head_dim=8, sample_size=8))


def tiny_flux_transformer(guidance_embeds: bool = True) -> nn.Module:
    """Two double and two single blocks of width 16."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=guidance_embeds,
    )
    return randomize(transformer)


def tiny_sd3_transformer() -> nn.Module:
    """Two joint blocks of width 16."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        out_channels=4,
        pos_embed_max_size=12,
    )
    return randomize(transformer)


def tiny_wan_transformer(image_width: int | None = None) -> nn.Module:
    """Two blocks of width 24; with ``image_width``, one that also attends to an image."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4 if image_width is None else 12,
        out_channels=4,
        text_dim=TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=32,
        image_dim=image_width,
        added_kv_proj_dim=None if image_width is None else 24,
    )
    return randomize(transformer)


def tiny_pipelines(num_steps: int = 20) -> tuple[PipelineWorkload, ...]:
    """The real call path of four pipelines, prompt to pixels, with next to no work in it."""
    return (
        PipelineWorkload("tiny DiTPipeline", lambda: dit_pipeline(tiny_dit_transformer()), dit_kwargs, _PLAIN_BLOCKS, num_steps),
        PipelineWorkload("tiny FluxPipeline", _tiny_flux, _tiny_flux_kwargs, _FLUX_BLOCKS, num_steps),
        PipelineWorkload("tiny StableDiffusion3Pipeline", _tiny_sd3, _tiny_sd3_kwargs, _JOINT_BLOCKS, num_steps),
        PipelineWorkload("tiny WanPipeline", _tiny_wan, _tiny_wan_kwargs, _WAN_BLOCKS, num_steps, calls_a_step=2),
    )


def _tiny_flux() -> DiffusionPipeline:
    from taylorseer_fx.bench import tiny_text

    text: dict[str, Any] = {"text_encoder": tiny_text.clip(), "text_encoder_2": tiny_text.t5()}
    text |= {"tokenizer": tiny_text.tokenizer(), "tokenizer_2": tiny_text.tokenizer()}
    return flux_pipeline(tiny_flux_transformer(), tiny_vae(), **text)


def _tiny_flux_kwargs(num_steps: int, seed: int) -> Kwargs:
    return _prompted(num_steps, seed) | {"height": 8, "width": 8, "max_sequence_length": 8}


def _tiny_sd3() -> DiffusionPipeline:
    from taylorseer_fx.bench import tiny_text

    half = TEXT_WIDTH // 2  # the two CLIPs side by side
    text = {"text_encoder": tiny_text.projected_clip(half), "text_encoder_2": tiny_text.projected_clip(half)}
    text |= {"text_encoder_3": tiny_text.t5()} | {f"tokenizer{i}": tiny_text.tokenizer() for i in ("", "_2", "_3")}
    return sd3_pipeline(tiny_sd3_transformer(), tiny_vae(), **text)


def _tiny_sd3_kwargs(num_steps: int, seed: int) -> Kwargs:
    from taylorseer_fx.bench import tiny_text

    guided = {"negative_prompt": tiny_text.NEGATIVE, "guidance_scale": 3.0}
    return _prompted(num_steps, seed) | guided | {"height": 8, "width": 8, "max_sequence_length": 8}


def _prompted(num_steps: int, seed: int) -> Kwargs:
    from taylorseer_fx.bench import tiny_text

    return sampling(num_steps, seed) | {"prompt": tiny_text.PROMPT, "output_type": "pt"}


def _tiny_wan() -> DiffusionPipeline:
    return wan_pipeline(tiny_wan_transformer(), tiny_wan_vae())


def _tiny_wan_kwargs(num_steps: int, seed: int) -> Kwargs:
    return wan_kwargs(num_steps, seed) | {"output_type": "pt"}
