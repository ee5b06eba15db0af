"""Real diffusers pipelines around a transformer of any size; without text encoders, prompts are given as embeddings.

Also what the tests build their tiny pipelines from.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)
from torch import Tensor, nn

Kwargs = dict[str, Any]
TEXT_LENGTH, TEXT_WIDTH = 6, 16  # of the tiny ones


def randomize(model: nn.Module, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """Every parameter a small random number (norm weights: around one), in eval mode and without gradients."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = 0.15 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        is_norm_scale = parameter.dim() == 1 and name.endswith("weight")
        parameter.data = noise + 1.0 if is_norm_scale else noise
    return nn.Module.to(model, dtype).eval().requires_grad_(False)  # not the model's own: diffusers' talks about dtypes


def noise(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """The same numbers for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(2000 + seed), dtype=torch.float64).to(dtype)


def quiet(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Without a progress bar of its own."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text(seed: int, length: int = TEXT_LENGTH, width: int = TEXT_WIDTH) -> Tensor:
    """Embeddings of a prompt; a negative prompt is one of seed ``seed + 100``."""
    return noise((1, length, width), seed, torch.float32)


def pooled(seed: int, width: int = TEXT_WIDTH) -> Tensor:
    """One vector a prompt."""
    return noise((1, width), 50 + seed, torch.float32)


def sampling(num_steps: int, seed: int) -> Kwargs:
    """The arguments of every call: noise of its own, latents returned as they are, no dataclass around them."""
    return {
        "num_inference_steps": num_steps,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
        "return_dict": False,
    }


def both_prompts(seed: int, length: int = TEXT_LENGTH, width: int = TEXT_WIDTH) -> Kwargs:
    """A prompt and a negative one."""
    return {"prompt_embeds": text(seed, length, width), "negative_prompt_embeds": text(seed + 100, length, width)}


def both_pooled(seed: int, width: int = TEXT_WIDTH) -> Kwargs:
    """The vectors of both."""
    return {"pooled_prompt_embeds": pooled(seed, width), "negative_pooled_prompt_embeds": pooled(seed + 100, width)}


def shifted_flow() -> FlowMatchEulerDiscreteScheduler:
    """Euler steps along a flow, sigmas shifted with the number of tokens, as FLUX and its kin ship it."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def wan_scheduler() -> UniPCMultistepScheduler:
    """A multistep solver of a flow, as Wan ships it."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def tiny_vae() -> AutoencoderKL:
    """Four latent channels, no downsampling."""
    vae = AutoencoderKL(
        block_out_channels=(4,),
        latent_channels=4,
        norm_num_groups=1,
        shift_factor=0.1,
        scaling_factor=0.5,
        sample_size=8,
    )
    return randomize(vae)


def dit_pipeline(transformer: nn.Module) -> DiTPipeline:
    """``DiTPipeline``, which always decodes: with a VAE that costs next to nothing."""
    return quiet(DiTPipeline(transformer=transformer, vae=tiny_vae(), scheduler=DDIMScheduler(clip_sample=False)))


def dit_kwargs(num_steps: int, seed: int) -> Kwargs:
    """The only pipeline here that cannot return latents; guidance is one batch with both halves."""
    return sampling(num_steps, seed) | {"class_labels": [seed % 1000], "guidance_scale": 3.0, "output_type": "pt"}


def flux_pipeline(transformer: nn.Module, vae: nn.Module | None = None, kind: type = FluxPipeline, **text: Any) -> FluxPipeline:
    """``FluxPipeline``, or one of its kin; ``text`` are encoders and tokenizers."""
    encoders = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")) | text
    return quiet(kind(transformer=transformer, vae=vae, scheduler=shifted_flow(), **encoders))


def flux_kwargs(
    num_steps: int, seed: int, size: int = 8, length: int = TEXT_LENGTH, width: int = TEXT_WIDTH, pooled_width: int = TEXT_WIDTH
) -> Kwargs:
    """``size`` in pixels; embedded guidance, one call a step."""
    prompt = {"prompt_embeds": text(seed, length, width), "pooled_prompt_embeds": pooled(seed, pooled_width)}
    return sampling(num_steps, seed) | prompt | {"height": size, "width": size}


def sd3_pipeline(transformer: nn.Module, vae: nn.Module | None = None, **text: Any) -> StableDiffusion3Pipeline:
    """``StableDiffusion3Pipeline``; ``text`` are encoders and tokenizers."""
    encoders = {f"{kind}{i}": None for kind in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")} | text
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return quiet(StableDiffusion3Pipeline(transformer=transformer, vae=vae, scheduler=scheduler, **encoders))


def sd3_kwargs(
    num_steps: int, seed: int, size: int = 64, length: int = TEXT_LENGTH, width: int = TEXT_WIDTH, pooled_width: int = TEXT_WIDTH
) -> Kwargs:
    """``size`` in pixels; guidance is one batch with both halves."""
    prompts = both_prompts(seed, length, width) | both_pooled(seed, pooled_width)
    return sampling(num_steps, seed) | prompts | {"guidance_scale": 3.0, "height": size, "width": size}


def tiny_wan_vae() -> nn.Module:
    """Four latent channels, down by 8 in space and 4 in time."""
    return randomize(
        AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
        )
    )


def wan_pipeline(transformer: nn.Module, vae: nn.Module | None = None) -> WanPipeline:
    """``WanPipeline``; its text encoder's tokenizer needs another package, so prompts are given as embeddings."""
    pipe = WanPipeline(transformer=transformer, vae=vae, scheduler=wan_scheduler(), tokenizer=None, text_encoder=None)
    return quiet(pipe)


def wan_kwargs(
    num_steps: int, seed: int, size: int = 64, num_frames: int = 5, length: int = TEXT_LENGTH, width: int = TEXT_WIDTH
) -> Kwargs:
    """``size`` in pixels; guidance is two calls a step."""
    video = {"height": size, "width": size, "num_frames": num_frames}
    return sampling(num_steps, seed) | both_prompts(seed, length, width) | {"guidance_scale": 3.0} | video
