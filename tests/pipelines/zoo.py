"""What a test needs of a diffusers pipeline: how to build it tiny and random, and how to call it for a number of steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from taylorseer_fx.bench.pipelines import TEXT_LENGTH, Kwargs


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


def plain_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The features of the most frequent kind of block: self-attention, cross-attention where there is one, MLP."""
    names = ("attn1", "attn2", "ff")
    modules = [getattr(block, name, None) for block in transformer.transformer_blocks for name in names]
    return [module for module in modules if module is not None]


def text_mask(padding: int = 2, length: int = TEXT_LENGTH) -> Tensor:
    return (torch.arange(length)[None] < length - padding).long()
