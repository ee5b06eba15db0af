"""Sana for video: linear attention, cross-attention to the text, an MLP of convolutions over space and over time."""

import torch
from diffusers import SanaVideoTransformer3DModel, SanaWMTransformer3DModel
from torch import Tensor, nn

from tests.models.variant import Inputs, Variant
from tests.zoo import noise, randomize, smooth

CHANNELS = 4
TEXT = 12


def text_mask() -> Tensor:
    return (torch.arange(TEXT) < TEXT - 3)[None].long()


def sana_video() -> nn.Module:
    return randomize(
        SanaVideoTransformer3DModel(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=3,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=16,
            mlp_ratio=3.0,
            rope_max_seq_len=32,
        )
    )


def sana_video_inputs(step: float, seed: int) -> Inputs:
    return {
        "hidden_states": smooth((1, CHANNELS, 2, 16, 16), step, seed, torch.float32),
        "encoder_hidden_states": noise((1, TEXT, 16), seed, torch.float32),
        "encoder_attention_mask": text_mask(),
        "timestep": torch.tensor([1000.0 - 20 * step]),
        "return_dict": False,
    }


def world() -> nn.Module:
    """Two blocks with a gated delta rule, and after each one with softmax, all with a second branch for the camera.

    Softmax attention is computed in bfloat16 even here, which rounds the last bits of float32 up to something; its output is
    scaled down so that this stays below the tolerance of the tests.
    """
    model = randomize(
        SanaWMTransformer3DModel(
            in_channels=CHANNELS,
            num_layers=4,
            hidden_size=48,
            num_attention_heads=2,
            softmax_every_n=2,
            linear_head_dim=24,
            chunk_plucker_channels=6,
            caption_channels=16,
        )
    )
    for block in model.blocks[1::2]:
        block.attn.proj.weight.div_(32)
    return model


def world_inputs(step: float, seed: int) -> Inputs:
    """The first frame is given, its time 0. A camera that moves aside: pose, focal lengths, centre."""
    frames, size = 3, 8
    poses = torch.eye(4).repeat(frames, 1, 1)
    poses[:, 0, 3] = 0.1 * torch.arange(frames)
    lens = torch.tensor([8.0, 8.0, 4.0, 4.0]).expand(frames, 4)
    times = torch.full((1, 1, frames), 1000.0 - 20 * step)
    times[..., 0] = 0
    return {
        "hidden_states": smooth((1, CHANNELS, frames, size, size), step, seed, torch.float32),
        "timestep": times,
        "encoder_hidden_states": noise((1, 1, TEXT, 16), seed, torch.float32),
        "encoder_attention_mask": text_mask(),
        "camera_conditions": torch.cat([poses.flatten(1), lens], dim=1)[None],
        "chunk_plucker": noise((1, 6, frames, size, size), seed + 1, torch.float32),
        "return_dict": False,
    }


VARIANTS = (
    Variant("SanaVideoTransformer3DModel", sana_video, sana_video_inputs),
    Variant("SanaWMTransformer3DModel", world, world_inputs),
)
