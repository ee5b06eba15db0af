"""Run the benchmarks and the demo, keep what they measured in ``benchmarks/results``, and write it into the README.

python -m benchmarks.record [steps] [demo] [readme]
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.readme import update_readme

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def record_benchmarks() -> None:
    """All pytest benchmarks; keeps each one's name, median seconds and ``extra_info``."""
    files = sorted((ROOT / "benchmarks").glob("test_*.py"))
    _write("benchmarks.json", {"benchmarks": [row for file in files for row in _measured(file)]})


def _measured(file: Path) -> list[dict[str, Any]]:
    """In a process of its own: Dynamo compiles one function a limited number of times, then runs it eagerly."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        command = [sys.executable, "-m", "pytest", str(file), "--benchmark-only", f"--benchmark-json={raw}"]
        subprocess.run(command, cwd=ROOT, check=True)
        benchmarks = json.loads(raw.read_text())["benchmarks"]
    return [{"name": row["name"], "median_seconds": row["stats"]["median"], **row["extra_info"]} for row in benchmarks]


def record_demo() -> None:
    """The demo at full size; keeps its table, and its picture for the README."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "demo.json"
        picture = ROOT / "docs" / "demo.png"
        picture.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "taylorseer_fx.cli", "demo", "--out", str(picture), "--json", str(table)]
        subprocess.run(command, cwd=ROOT, check=True)
        _write("demo.json", json.loads(table.read_text()))


def _write(name: str, content: dict[str, Any]) -> None:
    machine = {"cpu": _cpu_name(), "threads": torch.get_num_threads(), "python": platform.python_version()}
    header = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "torch": torch.__version__, **machine}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps({**header, **content}, indent=2) + "\n")


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    parts = {"steps": record_benchmarks, "demo": record_demo, "readme": lambda: update_readme(ROOT)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=list(parts), metavar="part")
    for part in parser.parse_args().parts:
        parts[part]()


if __name__ == "__main__":
    main()
