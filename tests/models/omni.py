"""One sequence of text, video and audio tokens, packed by indices: Cosmos 3 and MiniMax-H3."""

import torch
from diffusers import Cosmos3OmniTransformer, MiniMaxH3Transformer3DModel
from torch import nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

CHANNELS = 4
TEXT = 8


def cosmos3() -> nn.Module:
    return randomize(
        Cosmos3OmniTransformer(
            head_dim=16,
            hidden_size=32,
            intermediate_size=128,
            latent_channel=CHANNELS,
            latent_patch_size=2,
            patch_latent_dim=4 * CHANNELS,
            num_attention_heads=2,
            num_hidden_layers=3,
            num_key_value_heads=1,
            rope_axes_dim=[4, 2, 2],
            vocab_size=32,
        )
    )


def cosmos3_inputs(step: float, seed: int) -> Inputs:
    """A thousand tokens, for each of them embeds the time by itself, and attention must outweigh that."""
    frames, side = 4, 16
    tokens = frames * side * side
    grid = torch.cartesian_prod(torch.arange(frames), torch.arange(side), torch.arange(side))
    places = torch.cat([torch.arange(TEXT)[:, None].expand(TEXT, 3), TEXT + grid])
    video = torch.arange(TEXT, TEXT + tokens)
    return {
        "input_ids": torch.randint(0, 32, (TEXT,), generator=torch.Generator().manual_seed(seed)),
        "text_indexes": torch.arange(TEXT),
        "position_ids": places.T.contiguous(),
        "und_len": TEXT,
        "sequence_length": TEXT + tokens,
        "vision_tokens": [smooth((1, CHANNELS, frames, 2 * side, 2 * side), step, seed, torch.float32)],
        "vision_token_shapes": [(frames, side, side)],
        "vision_sequence_indexes": video,
        "vision_mse_loss_indexes": video,
        "vision_timesteps": torch.full((tokens,), 1000.0 - 20 * step),
        "vision_noisy_frame_indexes": [torch.arange(frames)],
        "return_dict": False,
    }


def minimax() -> nn.Module:
    """Attention is wider than the stream, and only a part of a head is rotated."""
    return randomize(
        MiniMaxH3Transformer3DModel(
            num_attention_heads=2,
            attention_head_dim=24,
            hidden_size=32,
            num_layers=3,
            num_refiner_layers=3,
            ffn_dim=128,
            in_channels=CHANNELS,
            audio_in_channels=6,
            text_dim=16,
            freq_dim=16,
            time_embed_hidden_dim=16,
            time_embed_dim=16,
            rope_freq_dim=3,
        )
    )


def minimax_inputs(step: float, seed: int) -> Inputs:
    """Video, text and audio are tagged 0, 1 and 2; video and audio each have their own time."""
    audio, video = 24, 128
    text, sound, sight = torch.arange(TEXT + audio + video).split([TEXT, audio, video])
    tags = torch.cat([torch.full((TEXT,), 1), torch.full((audio,), 2), torch.zeros(video, dtype=torch.long)])
    places = torch.zeros(len(tags), 3)
    places[:, 0] = torch.arange(len(tags))
    places[sight, 1] = torch.arange(video) % 8.0
    left = 1 - step / 50
    return {
        "hidden_states": smooth((1, video, 4 * CHANNELS), step, seed, torch.float32),
        "audio_hidden_states": smooth((1, audio, 6), step, seed + 1, torch.float32),
        "encoder_hidden_states": noise((1, TEXT, 16), seed, torch.float32),
        "timestep": torch.tensor([left, left / (2 - left)]),
        "timestep_indices": (tags == 2).long(),
        "token_tags": tags,
        "position_ids": places,
        "video_indices": sight,
        "audio_indices": sound,
        "text_indices": text,
        "return_dict": False,
    }


VARIANTS = (
    Variant("Cosmos3OmniTransformer", cosmos3, cosmos3_inputs),
    Variant("MiniMaxH3Transformer3DModel", minimax, minimax_inputs),
)
