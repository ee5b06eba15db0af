"""A process that compiles and runs a small model; ``tests/test_warm_start.py`` starts it twice."""

import dataclasses
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import taylorseer_fx.remade
import taylorseer_fx.traced
from taylorseer_fx import taylorseer_backend

TIMES = (9.0, 8.0, 7.0, 6.0, 5.0, 4.0)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x + gate * self.down(self.up(x).relu())


class Model(nn.Module):
    """Gated MLPs that take a timestep; enough for a forecast step to call one for several."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks: nn.ModuleList | None = nn.ModuleList(Block() for _ in range(8))
        self.embed = nn.Linear(4, 8)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        gate = self.embed(torch.cos(time[:, None] / torch.arange(1, 5)))[:, None]
        for block in self.blocks if self.blocks is not None else self.layers:
            x = block(x, gate)
        return x


def run(model: nn.Module, backend: Any) -> list[Tensor]:
    """A generation; without a ``backend`` as the model is."""
    compiled = torch.compile(model, backend=backend) if backend is not None else model
    with torch.no_grad():
        return [compiled(torch.ones(2, 5, 8), torch.full((2,), time)) for time in TIMES]


def main() -> None:
    runs: list[Any] = []
    run_passes = taylorseer_fx.traced.run_passes

    def counted(*args: Any, **kwargs: Any) -> Any:
        runs.append(args)
        return run_passes(*args, **kwargs)

    taylorseer_fx.traced.run_passes = taylorseer_fx.remade.run_passes = counted
    backend = taylorseer_backend(order=1, interval=3, warmup=2)
    outputs = run(Model(), backend)
    pass_runs = [len(runs)]
    report = backend.explain()
    pass_runs.append(len(runs))
    graphs = {name: str(report.graph(name).graph) for name in ("canonical", "guarded")}
    found = counters["aot_autograd"]
    saved = {
        "outputs": outputs,
        "lookups": (found["autograd_cache_hit"], found["autograd_cache_miss"]),
        "pass_runs": [*pass_runs, len(runs)],
        "stats": dataclasses.asdict(backend.stats()),
        "report": str(report).split("\n\n")[1:],  # without the times of the passes
        "graphs": graphs,
    }
    torch.save(saved, sys.argv[1])


if __name__ == "__main__":
    main()
