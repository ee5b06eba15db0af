"""Measure ours on a GPU against eager and plain torch.compile, and keep the figures in benchmarks/results/gpu.json.

See README.md in this folder for a machine that is lent for ten minutes at a time.

python -m benchmarks.gpu [--minutes 9] [--only FLUX] [--max-autotune] [--device cuda] [--small] [--out FILE]
"""

import argparse
import datetime
import platform
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch._inductor import list_mode_options

from benchmarks.gpu import STARTED
from benchmarks.gpu.cases import cases
from benchmarks.gpu.loop import copy_bandwidth
from benchmarks.gpu.recording import Record
from benchmarks.gpu.rows import Bench, choose_depth, measure_case
from benchmarks.readme import update_pages

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"


def run(device: torch.device, options: argparse.Namespace, mode: str, out: Path | None, end: float) -> None:
    """Every case in turn until the time is spent; what was left out is part of the record."""
    torch.set_float32_matmul_precision("high")
    bandwidth = copy_bandwidth(device, 2**20 if options.small else 2**30)
    how = {"mode": mode, "num_steps": options.steps, "copy_gigabytes_a_second": bandwidth / 1e9}
    record = Record({**_machine(device), **how}, out)
    chosen = [case for case in cases(options.small) if options.only.lower() in case.name.lower()]
    for number, case in enumerate(chosen):
        share = case.weight / sum(other.weight for other in chosen[number:])
        until = time.monotonic() + share * (end - time.monotonic())
        bench = Bench(device, options.steps, options.compiler, bandwidth, until, list_mode_options(mode))
        depth = choose_depth(bench, case)
        if depth is None:
            record.leave_out(f"{case.name}, all of it")
        else:
            measure_case(bench, case, depth, record)


def _machine(device: torch.device) -> dict[str, Any]:
    is_cuda = device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(device) if is_cuda else "CPU",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if is_cuda else None,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }


def main(arguments: list[str] | None = None, started: float | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny geometry: to see that it runs, not to measure")
    parser.add_argument("--minutes", type=float, default=9.0, help="since the start; what would not end in time is not begun")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--compiler", default="inductor", choices=["inductor", "eager"])
    parser.add_argument(
        "--max-autotune", action="store_true", help="mode max-autotune-no-cudagraphs, of torch.compile and of ours"
    )
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument(
        "--out", type=Path, help="the JSON file; benchmarks/results/gpu.json for whole runs in the default mode on a GPU"
    )
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch finds no CUDA device; --device cpu --small runs the same code without one")
    mode = "max-autotune-no-cudagraphs" if options.max_autotune else "default"
    is_record = device.type == "cuda" and not (options.small or options.only or options.max_autotune)
    out = options.out or (RESULTS if is_record else None)
    run(device, options, mode, out, (started or time.monotonic()) + 60 * options.minutes)
    if out == RESULTS:
        update_pages(ROOT)


if __name__ == "__main__":
    main(started=STARTED)
