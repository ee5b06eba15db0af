"""Audio and music: one-dimensional latents, mostly with ungated cross-attention; time is a token, a modulation, or both."""

import torch
from diffusers import (
    AceStepTransformer1DModel,
    LongCatAudioDiTTransformer,
    StableAudio3DiTModel,
    StableAudioDiTModel,
    T5FilmDecoder,
)
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers import MiniMaxMusic3Transformer1DModel
from torch import Tensor, nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

LENGTH = 64
TEXT = 8
WIDTH = 64
HEADS = 4
CHANNELS = 4


def channels_first(step: float, seed: int) -> Tensor:
    return smooth((1, CHANNELS, LENGTH), step, seed, torch.float32)


def channels_last(step: float, seed: int) -> Tensor:
    return smooth((1, LENGTH, CHANNELS), step, seed, torch.float32)


def text(seed: int) -> Tensor:
    return noise((1, TEXT, 16), seed, torch.float32)


def mask(length: int) -> Tensor:
    return torch.arange(length)[None] < length - 2


def descending(step: float) -> Tensor:
    return torch.full((1,), 1.0 - step / 50)


def ace_step() -> nn.Module:
    """Layers with and without a sliding window take turns; two times, of which the pipeline passes the same."""
    return randomize(
        AceStepTransformer1DModel(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            head_dim=WIDTH // HEADS,
            in_channels=3 * CHANNELS,
            audio_acoustic_hidden_dim=CHANNELS,
            sliding_window=8,
            encoder_hidden_size=16,
        )
    )


def ace_step_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": channels_last(step, seed),
        "timestep": descending(step),
        "timestep_r": descending(step),
        "encoder_hidden_states": text(seed),
        "context_latents": noise((1, LENGTH, 2 * CHANNELS), seed + 1, torch.float32),
        "return_dict": False,
    }


def longcat_audio(*, adaln: str) -> nn.Module:
    """A skip around all blocks; the modulation is shared by the blocks (global), or each has its own (local)."""
    return randomize(
        LongCatAudioDiTTransformer(
            dit_dim=WIDTH,
            dit_depth=3,
            dit_heads=HEADS,
            dit_text_dim=16,
            latent_dim=CHANNELS,
            adaln_type=adaln,
            use_latent_condition=False,
        )
    )


def longcat_audio_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": channels_last(step, seed),
        "encoder_hidden_states": text(seed),
        "encoder_attention_mask": mask(TEXT),
        "timestep": descending(step),
        "attention_mask": mask(LENGTH),
        "return_dict": False,
    }


def minimax_music() -> nn.Module:
    return randomize(
        MiniMaxMusic3Transformer1DModel(
            in_channels=CHANNELS,
            condition_dim=8,
            num_layers=3,
            num_attention_heads=HEADS,
            attention_head_dim=WIDTH // HEADS,
            ff_inner_dim=4 * WIDTH,
            rotary_dim=8,
            fourier_embedding_dim=16,
        )
    )


def minimax_music_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": channels_first(step, seed),
        "timestep": torch.full((1,), step / 50),
        "encoder_hidden_states": noise((1, LENGTH, 8), seed, torch.float32),
        "return_dict": False,
    }


def stable_audio() -> nn.Module:
    return randomize(
        StableAudioDiTModel(
            sample_size=LENGTH,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=3,
            attention_head_dim=WIDTH // HEADS,
            num_attention_heads=HEADS,
            num_key_value_attention_heads=2,
            cross_attention_dim=32,
            time_proj_dim=16,
            global_states_input_dim=16,
            cross_attention_input_dim=16,
        )
    )


def stable_audio_inputs(step: float, seed: int) -> Inputs:
    head_dim = WIDTH // HEADS
    return {
        "hidden_states": channels_first(step, seed),
        "timestep": descending(step),
        "encoder_hidden_states": text(seed),
        "global_hidden_states": noise((1, 1, 16), seed + 1, torch.float32),
        "rotary_embedding": get_1d_rotary_pos_embed(head_dim // 2, LENGTH + 1, use_real=True, repeat_interleave_real=False),
        "return_dict": False,
    }


def stable_audio3(*, differential: bool) -> nn.Module:
    """Attention is the difference of two, unless told otherwise; the gate is ``sigmoid(1 - g)``."""
    return randomize(
        StableAudio3DiTModel(
            io_channels=CHANNELS,
            embed_dim=WIDTH,
            depth=3,
            num_heads=HEADS,
            cond_token_dim=16,
            global_cond_dim=16,
            local_add_cond_dim=CHANNELS + 1,
            timestep_features_dim=16,
            num_memory_tokens=4,
            use_differential_attention=differential,
        )
    )


def stable_audio3_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": channels_first(step, seed),
        "timestep": descending(step),
        "encoder_hidden_states": text(seed),
        "global_hidden_states": noise((1, 16), seed + 1, torch.float32),
        "encoder_attention_mask": mask(TEXT),
        "return_dict": False,
    }


def inpaint_inputs(step: float, seed: int) -> Inputs:
    """What is to stay is added to the stream in each block, to all but its memory tokens."""
    known = noise((1, CHANNELS + 1, LENGTH), seed + 2, torch.float32)
    return {**stable_audio3_inputs(step, seed), "local_add_cond": known}


def t5_film() -> nn.Module:
    return randomize(
        T5FilmDecoder(
            input_dims=CHANNELS, targets_length=LENGTH, d_model=WIDTH, num_layers=3, num_heads=HEADS, d_kv=16, d_ff=4 * WIDTH
        )
    )


def t5_film_inputs(step: float, seed: int) -> Inputs:
    notes, before = (noise((1, TEXT, WIDTH), seed + i, torch.float32) for i in range(2))
    return {
        "encodings_and_masks": [(notes, mask(TEXT).float()), (before, torch.ones(1, TEXT))],
        "decoder_input_tokens": channels_last(step, seed),
        "decoder_noise_time": descending(step),
    }


VARIANTS = (
    Variant("AceStepTransformer1DModel", ace_step, ace_step_inputs),
    Variant("LongCatAudioDiTTransformer", lambda: longcat_audio(adaln="global"), longcat_audio_inputs),
    Variant("LongCatAudioDiTTransformer-local", lambda: longcat_audio(adaln="local"), longcat_audio_inputs),
    Variant("MiniMaxMusic3Transformer1DModel", minimax_music, minimax_music_inputs, ascending=True),
    Variant("StableAudioDiTModel", stable_audio, stable_audio_inputs),
    Variant("StableAudio3DiTModel", lambda: stable_audio3(differential=True), stable_audio3_inputs),
    Variant("StableAudio3DiTModel-plain", lambda: stable_audio3(differential=False), stable_audio3_inputs),
    Variant("StableAudio3DiTModel-inpaint", lambda: stable_audio3(differential=True), inpaint_inputs),
    Variant("T5FilmDecoder", t5_film, t5_film_inputs),
)
