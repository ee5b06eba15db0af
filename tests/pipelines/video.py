"""Pipelines of video models."""

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    WanImageToVideoPipeline,
)
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from taylorseer_fx.bench.pipelines import (
    TEXT_LENGTH,
    TEXT_WIDTH,
    Kwargs,
    both_pooled,
    both_prompts,
    quiet,
    randomize,
    sampling,
    shifted_flow,
    tiny_wan_vae,
    wan_kwargs,
    wan_pipeline,
    wan_scheduler,
)
from taylorseer_fx.bench.workloads import tiny_wan_transformer
from tests.pipelines.zoo import PipelineCase, plain_blocks, text_mask

_SIZE = {"height": 64, "width": 64, "num_frames": 5}
_IMAGE_WIDTH = 8


def _wan_modules(transformer: nn.Module) -> list[nn.Module]:
    return [module for block in transformer.blocks for module in (block.attn1, block.attn2, block.ffn)]


def _wan_i2v() -> WanImageToVideoPipeline:
    """The first frame enters twice: encoded among the latents, and as tokens that cross-attention adds to the text's."""
    encoder = CLIPVisionConfig(
        hidden_size=_IMAGE_WIDTH, num_hidden_layers=2, num_attention_heads=2, image_size=8, intermediate_size=16, patch_size=4
    )
    pipe = WanImageToVideoPipeline(
        transformer=tiny_wan_transformer(_IMAGE_WIDTH),
        vae=tiny_wan_vae(),
        scheduler=wan_scheduler(),
        tokenizer=None,
        text_encoder=None,
        image_encoder=randomize(CLIPVisionModel(encoder)),
        image_processor=CLIPImageProcessor(crop_size=8, size=8),
    )
    return quiet(pipe)


def _wan_i2v_kwargs(num_steps: int, seed: int) -> Kwargs:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(300 + seed))
    return wan_kwargs(num_steps, seed) | {"image": image}


def _hunyuan() -> HunyuanVideoPipeline:
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=2,
        patch_size=2,
        text_embed_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        rope_axes_dim=(4, 4, 4),
    )
    encoders = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    return quiet(HunyuanVideoPipeline(transformer=randomize(transformer), vae=None, scheduler=scheduler, **encoders))


def _hunyuan_kwargs(num_steps: int, seed: int) -> Kwargs:
    masks = {"prompt_attention_mask": text_mask(), "negative_prompt_attention_mask": text_mask(padding=3)}
    return sampling(num_steps, seed) | both_prompts(seed) | both_pooled(seed) | masks | {"true_cfg_scale": 3.0} | _SIZE


def _hunyuan_modules(transformer: nn.Module) -> list[nn.Module]:
    """The text is refined by gated blocks before it meets the video."""
    refiners = transformer.context_embedder.token_refiner.refiner_blocks
    modules = [module for block in refiners for module in (block.attn, block.ff)]
    modules += [module for block in transformer.transformer_blocks for module in (block.attn, block.ff, block.ff_context)]
    return modules + [block.proj_out for block in transformer.single_transformer_blocks]


def _ltx() -> LTXPipeline:
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=TEXT_WIDTH,
    )
    pipe = LTXPipeline(transformer=randomize(transformer), vae=None, scheduler=shifted_flow(), tokenizer=None, text_encoder=None)
    return quiet(pipe)


def _ltx_kwargs(num_steps: int, seed: int) -> Kwargs:
    masks = {"prompt_attention_mask": text_mask(), "negative_prompt_attention_mask": text_mask(padding=3)}
    size = {"height": 128, "width": 128, "num_frames": 9}
    return sampling(num_steps, seed) | both_prompts(seed) | masks | {"guidance_scale": 3.0} | size


def _cogvideox() -> CogVideoXPipeline:
    """One MLP over text and video together."""
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=TEXT_WIDTH,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        patch_size=2,
        max_text_seq_length=TEXT_LENGTH,
    )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0, timestep_spacing="trailing"
    )
    pipe = CogVideoXPipeline(transformer=randomize(transformer), vae=None, scheduler=scheduler, tokenizer=None, text_encoder=None)
    return quiet(pipe)


def _cogvideox_kwargs(num_steps: int, seed: int) -> Kwargs:
    return sampling(num_steps, seed) | both_prompts(seed) | {"guidance_scale": 3.0} | _SIZE


CASES = (
    PipelineCase("wan", lambda: wan_pipeline(tiny_wan_transformer()), wan_kwargs, _wan_modules, "serial"),
    PipelineCase("wan-i2v", _wan_i2v, _wan_i2v_kwargs, _wan_modules, "serial"),
    PipelineCase("hunyuan-video", _hunyuan, _hunyuan_kwargs, _hunyuan_modules, "serial"),
    PipelineCase("ltx", _ltx, _ltx_kwargs, plain_blocks, "batched"),
    PipelineCase("cogvideox", _cogvideox, _cogvideox_kwargs, plain_blocks, "batched"),
)
