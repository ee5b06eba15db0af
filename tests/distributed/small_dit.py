"""A DiT of two blocks shared as DTensors by torch's own styles, with a branch whose result nobody reads."""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

WIDTH, NUM_HEADS, NUM_BLOCKS = 16, 4, 2
MLP_PLAN = {"0": ColwiseParallel(), "2": RowwiseParallel()}
ATTENTION_PLAN = dict.fromkeys(("query", "key", "value"), ColwiseParallel()) | {"out": RowwiseParallel()}


def make_mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))


class Attention(nn.Module):
    """As many heads as its process has."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        projected = (
            project(x).unflatten(-1, (-1, WIDTH // NUM_HEADS)).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        return self.out(nn.functional.scaled_dot_product_attention(*projected).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """adaLN: shift, scale and gate of both branches from the time embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(2))
        self.attention = Attention()
        self.mlp = make_mlp()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        modulation = self.modulation(time)[:, None].chunk(6, dim=-1)
        x = x + modulation[2] * self.attention(self.norms[0](x) * (1 + modulation[1]) + modulation[0])
        return x + modulation[5] * self.mlp(self.norms[1](x) * (1 + modulation[4]) + modulation[3])


class SmallDiT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, -2, WIDTH // 2))
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(NUM_BLOCKS))
        self.unread = make_mlp()

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        phase = timestep[:, None] * self.frequencies
        time = self.embed(torch.cat([phase.sin(), phase.cos()], dim=-1))
        for block in self.blocks:
            x = block(x, time)
        self.unread(x)  # as the last text update of many models; it communicates all the same
        return x


def small_dit() -> SmallDiT:
    """The same random weights in every process."""
    torch.manual_seed(0)
    return SmallDiT().eval().requires_grad_(False)


def inputs(step: int) -> dict[str, Tensor]:
    start, end = torch.randn(2, 2, 8, WIDTH, generator=torch.Generator().manual_seed(1))
    u = step / 50
    return {"x": torch.lerp(start, end, u) + u * u, "timestep": torch.full((2,), 1000.0 - 20 * step)}


def share_branches(model: SmallDiT, mesh: DeviceMesh) -> None:
    """Split every branch over the ranks of ``mesh``."""
    for block in model.blocks:
        parallelize_module(block.attention, mesh, ATTENTION_PLAN)
        parallelize_module(block.mlp, mesh, MLP_PLAN)
    parallelize_module(model.unread, mesh, MLP_PLAN)
