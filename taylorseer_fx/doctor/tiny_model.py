"""A Diffusion Transformer of one small block in plain torch: the fewest kernels that hold attention, an MLP and the time."""

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, NUM_HEADS = 16, 2


class Attention(nn.Module):
    """Attention of the tokens among themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2) for x in self.qkv(tokens).chunk(3, -1))
        result: Tensor = self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return result


class TinyModel(nn.Module):
    """The model: float32 ``[batch, tokens, 16]`` and the time ``[batch]`` in, float32 ``[batch, tokens, 16]`` out."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.time, self.attention, self.out = nn.Linear(WIDTH, WIDTH), Attention(), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.register_buffer("frequencies", 0.01 ** torch.linspace(0, 1, WIDTH // 2))

    def forward(self, latents: Tensor, timestep: Tensor) -> Tensor:
        angles = timestep[:, None] * self.frequencies
        shift = self.time(torch.cat([angles.sin(), angles.cos()], -1))[:, None]
        tokens = latents + self.attention(functional.layer_norm(latents, (WIDTH,)) + shift)
        tokens = tokens + self.mlp(functional.layer_norm(tokens, (WIDTH,)))
        result: Tensor = self.out(tokens)
        return result
