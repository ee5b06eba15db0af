"""Record models that ranks share: two processes over gloo, and on paper one of several ranks of a full-size model.

python -m benchmarks.parallel [measured] [counted]

Kept in ``benchmarks/results/parallel.json`` and ``parallel_counted.json``. Measured on a tiny FLUX: what a step of either kind
communicates, the buffers of a rank, how far results are from one process, and the time that ranks take to agree on a step.
Counted, without running anything, for FLUX.1-dev and HunyuanVideo: operations, buffers and bytes of one of 2, 8 and 64 ranks.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.record import RESULTS, header
from taylorseer_fx import taylorseer_backend
from taylorseer_fx.bench.pipelines import TEXT_WIDTH, noise
from taylorseer_fx.bench.plan_command import PlanSettings, plan_model
from taylorseer_fx.bench.sharing import share
from taylorseer_fx.bench.workloads import tiny_flux_transformer
from taylorseer_fx.passes.collectives import Collectives
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.runtime.agreement import Agreement, Position
from taylorseer_fx.runtime.ticks import Tick

SETTINGS: dict[str, Any] = {"order": 2, "interval": 3, "warmup": 2}
WAYS = ("tensor", "ulysses", "ring", "simple_fsdp")
GRANULARITIES = ("module", "stack")
WORLD_SIZE, NUM_STEPS, TOKENS, TEXT = 2, 10, 64, 8
ROUNDS = 300  # of agreeing
COUNTED = (
    ("FLUX.1-dev", "tensor", (2, 8)),
    ("FLUX.1-dev", "ulysses", (2, 8)),
    ("FLUX.1-dev", "ring", (64,)),  # 24 heads cannot be divided by 64
    ("FLUX.1-dev", "simple_fsdp", (2, 8, 64)),
    ("HunyuanVideo", "simple_fsdp", (2, 8, 64)),  # diffusers has no plan to split its heads or tokens
)


def inputs(step: int) -> dict[str, Any]:
    """A step of 50: the latents move between two noises, and the time falls."""
    u, width = step / 50, 16
    rows = torch.arange(TOKENS)
    start, end = (noise((1, TOKENS, width), seed, torch.float32) for seed in (0, 1))
    return {
        "hidden_states": torch.lerp(start, end, u) + u * u,
        "encoder_hidden_states": noise((1, TEXT, TEXT_WIDTH), 2, torch.float32),
        "pooled_projections": noise((1, TEXT_WIDTH), 3, torch.float32),
        "timestep": torch.tensor([1.0 - u]),
        "guidance": torch.tensor([3.5]),
        "img_ids": torch.stack([torch.zeros(TOKENS), rows // 8, rows % 8], dim=1),
        "txt_ids": torch.zeros(TEXT, 3),
        "return_dict": False,
    }


def run(way: str | None, granularity: str) -> dict[str, Any]:
    """Two generations by this rank, or by this process alone."""
    torch._dynamo.reset()
    model = tiny_flux_transformer()
    if way is not None:
        share(model, way)
    backend = taylorseer_backend(**SETTINGS, granularity=granularity, compiler="eager")
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        outputs = [compiled(**inputs(step))[0].clone() for _ in range(2) for step in range(NUM_STEPS)]
    report = backend.explain()
    return {
        "outputs": torch.stack(outputs),
        "collectives": {kind: [asdict(entry) for entry in entries] for kind, entries in report.collectives.items()},
        "buffer_bytes": report.buffer_bytes,
    }


def time_agreement() -> float:
    """The median of ``ROUNDS``, in seconds."""
    agreement, seconds = Agreement(), []
    group = dist.group.WORLD.group_name
    for step in range(ROUNDS):
        tick = Tick((None, 0), 1, step)
        dist.barrier()
        start = time.perf_counter()
        agreement.require([group], tick, partial(Position.of, tick, 0, step, StepKind.FULL))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])  # the first makes the group


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD_SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE)
    found = {f"{way}, {granularity}": run(way, granularity) for way in WAYS for granularity in GRANULARITIES}
    torch.save((found, time_agreement()), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def measured() -> dict[str, Any]:
    """The rows for two processes, each beside one process alone."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (folder,), nprocs=WORLD_SIZE)
        (first, agreement_s), (second, _) = (torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD_SIZE))
    rows = []
    for name, ours in first.items():
        way, granularity = name.split(", ")
        alone = run(None, granularity)
        rows.append(
            {
                "way": way,
                "granularity": granularity,
                "collectives": ours["collectives"],
                "buffer_bytes": ours["buffer_bytes"],
                "buffer_bytes_alone": alone["buffer_bytes"],
                "error": float((ours["outputs"] - alone["outputs"]).abs().max() / alone["outputs"].abs().max()),
                "ranks_equal": torch.equal(ours["outputs"], second[name]["outputs"]),
            }
        )
    return {"rows": rows, "agreement_s": agreement_s}


def counted() -> dict[str, Any]:
    """The rows of models at full size, order 1, modules and stack."""
    rows = []
    for model, way, world_sizes in COUNTED:
        for world_size in world_sizes:
            found = plan_model(model, PlanSettings(orders=(1,), world_size=world_size, way=way))
            torch._dynamo.reset()
            for granularity, plan in found:
                (report,) = plan.reports
                rows.append(
                    {
                        "model": model,
                        "way": way,
                        "world_size": world_size,
                        "granularity": granularity,
                        "flops": report.flops,
                        "floor_bytes": {kind: traffic.floor for kind, traffic in report.traffic.items()},
                        "received": {kind: received(entries) for kind, entries in report.collectives.items()},
                        "num_collectives": {kind: sum(e.count for e in entries) for kind, entries in report.collectives.items()},
                        "buffer_bytes": plan.buffer_bytes,
                    }
                )
            print(model, way, world_size, flush=True)
    return {"rows": rows}


def received(entries: tuple[Collectives, ...]) -> int:
    """The bytes that a rank receives; a sum is first made in parts and then given to all ranks, so that it counts twice."""
    return sum(entry.num_bytes * (2 if entry.op == "all_reduce" else 1) for entry in entries)


def main() -> None:
    """Record what is named, or both."""
    parts = {"measured": (measured, "parallel.json"), "counted": (counted, "parallel_counted.json")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="default: both")
    for name in parser.parse_args().parts or parts:
        function, path = parts[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            (RESULTS / path).write_text(json.dumps({**header(), **function()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
