"""Run benchmarks, demo and comparison, keep the figures in ``benchmarks/results``, and write them into the README and the docs.

python -m benchmarks.record [steps] [demo] [comparison] [published] [readme]
python -m benchmarks.record steps --only floor update                 of the benchmarks just these
python -m benchmarks.record comparison --only digits flux             of the workloads just these
python -m benchmarks.record claims [--samples 2000] [--cells N]       hours; goes on where it was broken off
python -m benchmarks.record claims --model fashion --samples 500      the main cells only
python -m benchmarks.record claims --samples 10000 --workers 2        drawn by workers of Ray, the same pictures
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks.readme import update_pages
from taylorseer_fx.bench import claims_report
from taylorseer_fx.bench.claims import Sampler, run_claims
from taylorseer_fx.bench.main import write_documents
from taylorseer_fx.bench.plan_command import published
from taylorseer_fx.bench.results import Report, cpu_name
from taylorseer_fx.bench.suite import CHOICES, entries
from taylorseer_fx.shipped import DIGITS, SHIPPED, Shipped

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COMPARED = tuple(entries())


def record_benchmarks(only: Sequence[str] = ()) -> None:
    """The pytest benchmarks, all or some files; keeps each one's name, date, median seconds and ``extra_info``, and what was
    recorded of the others.
    """
    folder, path = ROOT / "benchmarks", RESULTS / "benchmarks.json"
    files = [folder / f"test_{name}.py" for name in only] or sorted(folder.glob("test_*.py"))
    before = json.loads(path.read_text())["benchmarks"] if only else []
    measured = [row for file in files for row in _measured(file)]
    _write(path.name, {"benchmarks": list({row["name"]: row for row in (*before, *measured)}.values())})


def _measured(file: Path) -> list[dict[str, Any]]:
    """In a process of its own: Dynamo compiles one function a limited number of times, then runs it eagerly."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        command = [sys.executable, "-m", "pytest", str(file), "--benchmark-only", f"--benchmark-json={raw}"]
        subprocess.run(command, cwd=ROOT, check=True)
        benchmarks = json.loads(raw.read_text())["benchmarks"]
    today = _today()
    return [
        {"name": row["name"], "date": today, "median_seconds": row["stats"]["median"], **row["extra_info"]} for row in benchmarks
    ]


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def record_demo() -> None:
    """The demo at full size; keeps its table, and its picture for the README."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "demo.json"
        picture = ROOT / "docs" / "demo.png"
        picture.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "taylorseer_fx.cli", "demo", "--out", str(picture), "--json", str(table)]
        subprocess.run(command, cwd=ROOT, check=True)
        _write("demo.json", json.loads(table.read_text()))


def record_comparison(only: Sequence[str] = (), methods: str = "all") -> None:
    """The comparison on every workload, or on some, beside what was recorded of the others.

    Each runs in a process of its own, so that memory of one is not there in the next, and is written down when it is done.
    """
    path = RESULTS / "comparison.json"
    kept = Report.from_json(path.read_text()).workloads if only and path.exists() else ()
    workloads = {result.workload: result for result in kept}
    for name in only or COMPARED:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "taylorseer_fx.cli",
                "bench",
                name,
                "--methods",
                methods,
                "--warm-start",
                "--out",
                folder,
            ]
            command += ["--samples", "400"] if (name, methods) == ("digits", "all") else []
            subprocess.run(command, cwd=ROOT, check=True)
            report = Report.from_json((Path(folder) / "comparison.json").read_text())
        workloads |= {result.workload: result for result in report.workloads}
        so_far = Report(tuple(workloads.values()), report.machine)
        path.write_text(so_far.to_json())
        write_documents(so_far, ROOT / "docs" / "comparison")


def record_claims(model: Shipped, num_samples: int, limit: int | None, workers: int = 0) -> None:
    """The paper's claims in kind: all cells on the digits model, the main ones on the larger."""
    is_digits = model is DIGITS
    name = "claims" if is_digits else f"claims-{model.name}"

    def say(number: int, total: int, key: str) -> None:
        print(f"{datetime.datetime.now():%H:%M:%S}  {number + 1} of {total}  {key}", flush=True)

    sampler = Sampler(model, workers=workers)
    with _one_ray(workers):
        done = run_claims(RESULTS / f"{name}.json", num_samples, sampler, say, limit, brief=not is_digits)
    content = json.loads((RESULTS / f"{name}.json").read_text())
    folder = ROOT / "docs" / "comparison"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(f"# The paper's claims in kind\n\n{claims_report.markdown(content)}\n")
    claims_report.save_picture(content, folder / f"{name}.png")
    print("all cells are done" if done else "cells are missing: run it again")


def _one_ray(workers: int) -> AbstractContextManager[None]:
    """The one that all cells use, rather than one for each."""
    if not workers:
        return nullcontext()
    from taylorseer_fx.ray import connected

    return connected(workers)


def record_published() -> None:
    """The paper's FLOPs columns, counted anew."""
    columns = ("model", "setting", "published", "counted")
    _write("published.json", {"rows": [dict(zip(columns, row, strict=True)) for row in published()]})


def _write(name: str, content: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps({**header(), **content}, indent=2) + "\n")


def header() -> dict[str, Any]:
    """When and on what something was recorded."""
    machine = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "python": platform.python_version()}
    return {"date": _today(), "torch": torch.__version__, **machine}


def main() -> None:
    parts = {
        "steps": lambda: record_benchmarks(args.only),
        "demo": record_demo,
        "comparison": lambda: record_comparison(args.only, args.methods),
        "published": record_published,
        "readme": lambda: update_pages(ROOT),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, "claims", []], default=list(parts), metavar="part")
    parser.add_argument("--samples", type=int, default=2000, help="of each of the main cells of claims (default: %(default)s)")
    parser.add_argument("--model", choices=list(SHIPPED), default=DIGITS.name, help="of claims (default: %(default)s)")
    parser.add_argument("--cells", type=int, help="of claims, at most so many in this run")
    parser.add_argument("--workers", type=int, default=0, help="of Ray, that draw the samples of claims (default: this process)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="benchmarks/test_NAME.py of steps, or workloads of comparison"
    )
    parser.add_argument("--methods", choices=CHOICES, default="all", help="of comparison (default: %(default)s)")
    args = parser.parse_args()
    for part in args.parts:
        if part == "claims":
            record_claims(SHIPPED[args.model], args.samples, args.cells, args.workers)
        else:
            parts[part]()


if __name__ == "__main__":
    main()
