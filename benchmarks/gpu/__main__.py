"""Measure ours on a GPU against eager and plain torch.compile, and keep the figures in benchmarks/results/gpu.json.

python -m benchmarks.gpu [--minutes 10] [--only FLUX] [--max-autotune] [--device cuda] [--small] [--out FILE]
"""

import argparse
import datetime
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch._inductor import list_mode_options

from benchmarks.gpu.cases import cases
from benchmarks.gpu.loop import copy_bandwidth
from benchmarks.gpu.rows import Bench, choose_depth, measure_case
from benchmarks.readme import update_readme

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"


def run(device: torch.device, small: bool, minutes: float, num_steps: int, compiler: str, only: str, mode: str) -> dict[str, Any]:
    """Every case in turn until the time is spent; what was left out is part of the result."""
    torch.set_float32_matmul_precision("high")
    options = list_mode_options(mode)
    bandwidth = copy_bandwidth(device, 2**20 if small else 2**30)
    end = time.monotonic() + 60 * minutes
    chosen = [case for case in cases(small) if only.lower() in case.name.lower()]
    rows, left_out = list[dict[str, Any]](), list[str]()
    for number, case in enumerate(chosen):
        share = case.weight / sum(other.weight for other in chosen[number:])
        until = time.monotonic() + share * (end - time.monotonic())
        bench = Bench(device, num_steps, compiler, bandwidth, until, options)
        depth = choose_depth(bench, case)
        if depth is None:
            left_out.append(f"{case.name}, all of it")
            continue
        for row in measure_case(bench, case, depth, left_out):
            rows.append(row)
            print(_line(row), flush=True)
    for what in left_out:
        print(f"left out, no time: {what}")
    return {
        **_machine(device),
        "mode": mode,
        "num_steps": num_steps,
        "copy_gigabytes_a_second": bandwidth / 1e9,
        "rows": rows,
        "left_out": left_out,
    }


def _line(row: dict[str, Any]) -> str:
    ours = row["cuda_graphs"]
    return (
        f"{row['case']}, {row['setting']}: full {ours['full_ms']:.2f} ms, forecast {ours['forecast_ms']:.3f} ms, "
        f"{ours['over_eager']:.2f}x over eager, {ours['over_plain']:.2f}x over torch.compile (ceiling {ours['ceiling']:.2f}x)"
    )


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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny geometry: to see that it runs, not to measure")
    parser.add_argument("--minutes", type=float, default=9.5, help="no row is begun that is not expected to end in time")
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
    result = run(device, options.small, options.minutes, options.steps, options.compiler, options.only, mode)
    is_record = device.type == "cuda" and not (options.small or options.only or options.max_autotune)
    out = options.out or (RESULTS if is_record else None)
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + os.linesep)
    if out == RESULTS:
        update_readme(ROOT)


if __name__ == "__main__":
    main()
