"""Pipelines of image models."""

import torch
from diffusers import (
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn

from tests.pipelines.zoo import (
    TEXT_LENGTH,
    TEXT_WIDTH,
    Kwargs,
    PipelineCase,
    both_pooled,
    both_prompts,
    plain_blocks,
    pooled,
    quiet,
    sampling,
    shifted_flow,
    text,
    text_mask,
    tiny_vae,
)
from tests.zoo import randomize


def _dit() -> DiTPipeline:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
    )
    scheduler = DDIMScheduler(clip_sample=False)
    return quiet(DiTPipeline(transformer=randomize(transformer), vae=tiny_vae(), scheduler=scheduler))


def _dit_kwargs(num_steps: int, seed: int) -> Kwargs:
    """The only pipeline here that cannot return latents."""
    return sampling(num_steps, seed) | {"class_labels": [seed % 1000], "guidance_scale": 3.0, "output_type": "pt"}


def _flux_transformer(guidance_embeds: bool) -> nn.Module:
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


def _flux(pipeline: type, guidance_embeds: bool = True) -> FluxPipeline:
    return quiet(
        pipeline(
            transformer=_flux_transformer(guidance_embeds),
            vae=tiny_vae(),
            scheduler=shifted_flow(),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
        )
    )


def _picture(seed: int) -> Tensor:
    return torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(300 + seed))


def _flux_kwargs(num_steps: int, seed: int) -> Kwargs:
    prompt = {"prompt_embeds": text(seed), "pooled_prompt_embeds": pooled(seed)}
    return sampling(num_steps, seed) | prompt | {"height": 8, "width": 8}


def _flux_cfg_kwargs(num_steps: int, seed: int) -> Kwargs:
    return _flux_kwargs(num_steps, seed) | both_prompts(seed) | both_pooled(seed) | {"true_cfg_scale": 2.0}


def _flux_img2img_kwargs(num_steps: int, seed: int) -> Kwargs:
    """Half the strength runs the second half of the schedule."""
    return _flux_kwargs(2 * num_steps, seed) | {"image": _picture(seed), "strength": 0.5}


def _flux_kontext_kwargs(num_steps: int, seed: int) -> Kwargs:
    return _flux_cfg_kwargs(num_steps, seed) | {"image": _picture(seed), "max_area": 64, "_auto_resize": False}


def _flux_modules(transformer: nn.Module) -> list[nn.Module]:
    double = [module for block in transformer.transformer_blocks for module in (block.attn, block.ff, block.ff_context)]
    return double + [block.proj_out for block in transformer.single_transformer_blocks]


def _sd3() -> StableDiffusion3Pipeline:
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
    encoders = {f"{kind}{i}": None for kind in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = StableDiffusion3Pipeline(transformer=randomize(transformer), vae=None, scheduler=scheduler, **encoders)
    return quiet(pipe)


def _sd3_kwargs(num_steps: int, seed: int) -> Kwargs:
    return sampling(num_steps, seed) | both_prompts(seed) | both_pooled(seed) | {"guidance_scale": 3.0, "height": 64, "width": 64}


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
    PipelineCase("dit", _dit, _dit_kwargs, plain_blocks, "batched"),
    PipelineCase("flux", lambda: _flux(FluxPipeline), _flux_kwargs, _flux_modules, "none"),
    PipelineCase("flux-true-cfg", lambda: _flux(FluxPipeline, False), _flux_cfg_kwargs, _flux_modules, "serial"),
    PipelineCase("flux-img2img", lambda: _flux(FluxImg2ImgPipeline), _flux_img2img_kwargs, _flux_modules, "none"),
    PipelineCase("flux-kontext", lambda: _flux(FluxKontextPipeline), _flux_kontext_kwargs, _flux_modules, "serial"),
    PipelineCase("sd3", _sd3, _sd3_kwargs, _sd3_modules, "batched"),
    PipelineCase("pixart", _pixart, _pixart_kwargs, plain_blocks, "batched"),
    PipelineCase("qwen-image", _qwen, _qwen_kwargs, _qwen_modules, "serial"),
    PipelineCase("sana", _sana, _sana_kwargs, plain_blocks, "batched"),
    PipelineCase("lumina2", _lumina2, _lumina2_kwargs, _lumina2_modules, "serial", "reads text lengths"),
    PipelineCase("z-image", _z_image, _z_image_kwargs, _z_image_modules, "batched"),
)
