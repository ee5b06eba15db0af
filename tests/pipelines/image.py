"""Pipelines of image models."""

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn

from taylorseer_fx.bench.pipelines import (
    TEXT_LENGTH,
    TEXT_WIDTH,
    Kwargs,
    both_pooled,
    both_prompts,
    dit_kwargs,
    dit_pipeline,
    flux_kwargs,
    flux_pipeline,
    quiet,
    randomize,
    sampling,
    sd3_kwargs,
    sd3_pipeline,
    shifted_flow,
    text,
    tiny_vae,
)
from taylorseer_fx.bench.workloads import tiny_dit_transformer, tiny_flux_transformer, tiny_sd3_transformer
from tests.pipelines.zoo import PipelineCase, plain_blocks, text_mask


def _flux(kind: type, guidance_embeds: bool = True) -> FluxPipeline:
    """With a VAE, which those that begin with a picture need."""
    return flux_pipeline(tiny_flux_transformer(guidance_embeds), tiny_vae(), kind)


def _picture(seed: int) -> Tensor:
    return torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(300 + seed))


def _flux_cfg_kwargs(num_steps: int, seed: int) -> Kwargs:
    return flux_kwargs(num_steps, seed) | both_prompts(seed) | both_pooled(seed) | {"true_cfg_scale": 2.0}


def _flux_img2img_kwargs(num_steps: int, seed: int) -> Kwargs:
    """Half the strength runs the second half of the schedule."""
    return flux_kwargs(2 * num_steps, seed) | {"image": _picture(seed), "strength": 0.5}


def _flux_kontext_kwargs(num_steps: int, seed: int) -> Kwargs:
    return _flux_cfg_kwargs(num_steps, seed) | {"image": _picture(seed), "max_area": 64, "_auto_resize": False}


def _flux_modules(transformer: nn.Module) -> list[nn.Module]:
    double = [module for block in transformer.transformer_blocks for module in (block.attn, block.ff, block.ff_context)]
    return double + [block.proj_out for block in transformer.single_transformer_blocks]


def _sd3_modules(transformer: nn.Module) -> list[nn.Module]:
    """The last block updates the image only."""
    modules = [module for block in transformer.transformer_blocks for module in (block.attn, block.ff, block.ff_context)]
    return [module for module in modules if module is not None]


def _pixart() -> PixArtAlphaPipeline:
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=TEXT_WIDTH,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        use_additional_conditions=False,
    )
    pipe = PixArtAlphaPipeline(
        transformer=randomize(transformer), vae=None, scheduler=DPMSolverMultistepScheduler(), tokenizer=None, text_encoder=None
    )
    return quiet(pipe)


def _masked_kwargs(num_steps: int, seed: int) -> Kwargs:
    masks = {"prompt_attention_mask": text_mask(), "negative_prompt_attention_mask": text_mask(padding=3)}
    guidance = {"guidance_scale": 3.0, "negative_prompt": None}  # of PixArt and Sana, the default is ""
    return sampling(num_steps, seed) | both_prompts(seed) | masks | guidance


def _pixart_kwargs(num_steps: int, seed: int) -> Kwargs:
    return _masked_kwargs(num_steps, seed) | {"height": 64, "width": 64, "use_resolution_binning": False}


def _qwen() -> QwenImagePipeline:
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    pipe = QwenImagePipeline(
        transformer=randomize(transformer), vae=None, scheduler=shifted_flow(), tokenizer=None, text_encoder=None
    )
    return quiet(pipe)


def _qwen_kwargs(num_steps: int, seed: int) -> Kwargs:
    masks = {"prompt_embeds_mask": text_mask(), "negative_prompt_embeds_mask": text_mask(padding=3)}
    return sampling(num_steps, seed) | both_prompts(seed) | masks | {"true_cfg_scale": 3.0, "height": 64, "width": 64}


def _qwen_modules(transformer: nn.Module) -> list[nn.Module]:
    return [module for block in transformer.transformer_blocks for module in (block.attn, block.img_mlp, block.txt_mlp)]


def _sana() -> SanaPipeline:
    """Linear attention and convolutional MLPs."""
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=TEXT_WIDTH,
        sample_size=4,
    )
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe = SanaPipeline(transformer=randomize(transformer), vae=None, scheduler=scheduler, tokenizer=None, text_encoder=None)
    return quiet(pipe)


def _sana_kwargs(num_steps: int, seed: int) -> Kwargs:
    return _masked_kwargs(num_steps, seed) | {"height": 128, "width": 128, "use_resolution_binning": False}


def _lumina2() -> Lumina2Pipeline:
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(30, 16, 16),
        cap_feat_dim=TEXT_WIDTH,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    pipe = Lumina2Pipeline(transformer=randomize(transformer), vae=None, scheduler=scheduler, tokenizer=None, text_encoder=None)
    return quiet(pipe)


def _lumina2_kwargs(num_steps: int, seed: int) -> Kwargs:
    same_length = {"negative_prompt_attention_mask": text_mask()}  # another one would compile every graph once more
    return _masked_kwargs(num_steps, seed) | same_length | {"height": 64, "width": 64}


def _lumina2_modules(transformer: nn.Module) -> list[nn.Module]:
    """A feature is what the gate multiplies: the norm after attention and MLP belongs to it."""
    blocks = [*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers]
    return [module for block in blocks for module in (block.norm2, block.ffn_norm2)]


def _z_image() -> ZImagePipeline:
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=2,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 16, 16],
    )
    pipe = ZImagePipeline(
        transformer=randomize(transformer), vae=None, scheduler=shifted_flow(), tokenizer=None, text_encoder=None
    )
    return quiet(pipe)


def _z_image_kwargs(num_steps: int, seed: int) -> Kwargs:
    """Prompts are lists of embeddings, each as long as it is."""
    prompts = {
        "prompt_embeds": [text(seed)[0]],
        "negative_prompt_embeds": [text(seed + 100, length=TEXT_LENGTH - 2)[0]],
    }
    return sampling(num_steps, seed) | prompts | {"guidance_scale": 3.0, "height": 64, "width": 64}


def _z_image_modules(transformer: nn.Module) -> list[nn.Module]:
    """As with Lumina 2, up to the gate."""
    blocks = [*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers]
    return [module for block in blocks for module in (block.attention_norm2, block.ffn_norm2)]


CASES = (
    PipelineCase("dit", lambda: dit_pipeline(tiny_dit_transformer()), dit_kwargs, plain_blocks, "batched"),
    PipelineCase("flux", lambda: _flux(FluxPipeline), flux_kwargs, _flux_modules, "none"),
    PipelineCase("flux-true-cfg", lambda: _flux(FluxPipeline, False), _flux_cfg_kwargs, _flux_modules, "serial"),
    PipelineCase("flux-img2img", lambda: _flux(FluxImg2ImgPipeline), _flux_img2img_kwargs, _flux_modules, "none"),
    PipelineCase("flux-kontext", lambda: _flux(FluxKontextPipeline), _flux_kontext_kwargs, _flux_modules, "serial"),
    PipelineCase("sd3", lambda: sd3_pipeline(tiny_sd3_transformer()), sd3_kwargs, _sd3_modules, "batched"),
    PipelineCase("pixart", _pixart, _pixart_kwargs, plain_blocks, "batched"),
    PipelineCase("qwen-image", _qwen, _qwen_kwargs, _qwen_modules, "serial"),
    PipelineCase("sana", _sana, _sana_kwargs, plain_blocks, "batched"),
    PipelineCase("lumina2", _lumina2, _lumina2_kwargs, _lumina2_modules, "serial", "reads text lengths"),
    PipelineCase("z-image", _z_image, _z_image_kwargs, _z_image_modules, "batched"),
)
