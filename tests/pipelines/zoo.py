"""What a test needs of a diffusers pipeline: how to build it tiny and random, and how to call it for a number of steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from tests.zoo import noise, randomize

Kwargs = dict[str, Any]
TEXT_LENGTH = 6
TEXT_WIDTH = 16


@dataclass(frozen=True)
class PipelineCase:
    """A real pipeline of random components, without tokenizers and text encoders: prompts are given as embeddings.

    ``build()`` returns it, the same parameters every time. ``kwargs(num_steps, seed)`` are its arguments for a generation of
    that many denoising steps (after ``strength`` is taken off); another seed is another prompt and other noise.
    ``feature_modules`` takes ``pipe.transformer`` and returns the modules whose outputs are the features. ``guidance`` is how
    many times the transformer is called a step: "serial" is twice, conditional and not, "batched" once with both.
    ``graph_breaks``: why the transformer does not compile to one graph.
    """

    name: str
    build: Callable[[], DiffusionPipeline]
    kwargs: Callable[[int, int], Kwargs]
    feature_modules: Callable[[nn.Module], list[nn.Module]]
    guidance: Literal["batched", "serial", "none"]
    graph_breaks: str = ""

    @property
    def num_streams(self) -> int:
        return 2 if self.guidance == "serial" else 1


def quiet(pipe: DiffusionPipeline) -> DiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def plain_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The features of the most frequent kind of block: self-attention, cross-attention where there is one, MLP."""
    names = ("attn1", "attn2", "ff")
    modules = [getattr(block, name, None) for block in transformer.transformer_blocks for name in names]
    return [module for module in modules if module is not None]


def text(seed: int, length: int = TEXT_LENGTH, width: int = TEXT_WIDTH) -> Tensor:
    """Embeddings of a prompt; a negative prompt is one of seed ``seed + 100``."""
    return noise((1, length, width), seed, torch.float32)


def text_mask(padding: int = 2, length: int = TEXT_LENGTH) -> Tensor:
    return (torch.arange(length)[None] < length - padding).long()


def pooled(seed: int) -> Tensor:
    return noise((1, TEXT_WIDTH), 50 + seed, torch.float32)


def sampling(num_steps: int, seed: int) -> Kwargs:
    """What every call has: noise of its own, latents returned as they are, no dataclass around them."""
    return {
        "num_inference_steps": num_steps,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
        "return_dict": False,
    }


def both_prompts(seed: int) -> Kwargs:
    return {"prompt_embeds": text(seed), "negative_prompt_embeds": text(seed + 100)}


def both_pooled(seed: int) -> Kwargs:
    return {"pooled_prompt_embeds": pooled(seed), "negative_pooled_prompt_embeds": pooled(seed + 100)}


def shifted_flow() -> FlowMatchEulerDiscreteScheduler:
    """Euler steps along a flow, sigmas shifted with the number of tokens, as FLUX and its kin ship it."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


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
