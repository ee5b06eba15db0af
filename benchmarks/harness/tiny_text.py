"""Tiny random text encoders and tokenizers made in memory, so that a pipeline takes a prompt as it does at full size."""

from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from taylorseer_fx.bench.pipelines import TEXT_WIDTH, randomize

PROMPT, NEGATIVE = "a red fox in the snow", "blurred"
_WORDS = ("<pad>", "<eos>", "<unk>", *f"{PROMPT} {NEGATIVE}".split())
_PAD, _EOS = 0, 1
LENGTH = 8  # tokens


def tokenizer() -> Any:
    """Knows the words of the prompts here."""
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    make: Any = PreTrainedTokenizerFast  # transformers' annotations lack it
    return make(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=LENGTH)


def _clip_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(_WORDS),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        pad_token_id=_PAD,
        bos_token_id=_EOS,
        eos_token_id=_EOS,
    )


def clip(width: int = TEXT_WIDTH) -> nn.Module:
    """A CLIP text encoder."""
    return randomize(CLIPTextModel(_clip_config(width)))


def projected_clip(width: int) -> nn.Module:
    """A CLIP text encoder with a projection."""
    return randomize(CLIPTextModelWithProjection(_clip_config(width)))


def t5() -> nn.Module:
    """A T5 encoder."""
    config = T5Config(
        vocab_size=len(_WORDS), d_model=TEXT_WIDTH, d_kv=8, d_ff=TEXT_WIDTH, num_layers=2, num_heads=2, pad_token_id=_PAD
    )
    return randomize(T5EncoderModel(config))
