"""One of the processes of the tensor-parallel test: ``python -m tests.composition.distributed_worker RANK WORLD_SIZE DIRECTORY``.

Imports little, since every process pays for it. The model is here for the test to have it too.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from taylorseer_fx import TaylorSeerBackend, taylorseer_backend

WIDTH, NUM_HEADS, NUM_BLOCKS = 16, 4, 2
NUM_STEPS = 10
SETTINGS = {"order": 2, "interval": 3, "warmup": 2}
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


def is_collective(node: fx.Node) -> bool:
    return getattr(node.target, "namespace", "").removeprefix("_") in {"c10d", "c10d_functional"}


def num_collectives(backend: TaylorSeerBackend, kind: str) -> int:
    return sum(map(is_collective, backend.explain().graph(kind).graph.nodes))


@torch.no_grad()
def run(rank: int, world_size: int, directory: Path) -> dict[str, Any]:
    """Two generations; what was returned, which calls were forecast, and how much is communicated in either kind of step."""
    store = dist.FileStore(str(directory / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    model = small_dit()
    mesh = init_device_mesh("cpu", (world_size,))
    for block in model.blocks:
        parallelize_module(block.attention, mesh, ATTENTION_PLAN)
        parallelize_module(block.mlp, mesh, MLP_PLAN)
    parallelize_module(model.unread, mesh, MLP_PLAN)
    backend = taylorseer_backend(**SETTINGS, compiler="eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    generations, forecasts = [], []
    for _ in range(2):
        outputs = []
        for step in range(NUM_STEPS):
            outputs.append(compiled(**inputs(step)).clone())
            forecasts.append(backend.stats().forecast_calls)
        generations.append(torch.stack(outputs))
    report = backend.explain()
    result = {
        "generations": generations,
        "forecasts": forecasts,
        "collectives": {kind: num_collectives(backend, kind) for kind in ("full", "forecast")},
        "kinds": sorted(region.kind for region in report.regions),
        "rejected": len(report.rejected),
    }
    dist.barrier()
    dist.destroy_process_group()
    return result


if __name__ == "__main__":
    rank, world_size, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    torch.save(run(rank, world_size, directory), directory / f"{rank}.pt")
