"""Generate and count the CUDA code of whole models, and keep the figures in benchmarks/results and docs/cuda_codegen.md.

python -m benchmarks.cuda_codegen [--only FLUX] [--out FILE]        some minutes; needs triton, no GPU
"""

import argparse
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.cuda_codegen.document import page
from benchmarks.cuda_codegen.measure import GRANULARITIES, ours, plain
from benchmarks.cuda_codegen.pretending import ARCHITECTURE
from benchmarks.cuda_codegen.subjects import SUBJECTS, Subject
from benchmarks.cuda_codegen.tracing import trace
from taylorseer_fx.passes.lower import AS_IT_IS, TARGETS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cuda_codegen.json"
PAGE = ROOT / "docs" / "cuda_codegen.md"
ORDER = 2


def rows(subject: Subject) -> Iterator[dict[str, Any]]:
    """The figures of each graph of a model at full depth."""
    traced = trace(*subject.on_meta(subject.depth))
    yield {"lowered": "", **plain(traced).figures()}
    for granularity in GRANULARITIES:
        for lowered, target in (("before", AS_IT_IS), ("after", TARGETS["cuda"])):
            for code in ours(traced, granularity, target, ORDER):
                yield {"lowered": lowered, **code.figures()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models whose name holds this; the record needs all")
    parser.add_argument("--out", type=Path, help="the JSON file, written after each row; benchmarks/results for all models")
    options = parser.parse_args()
    out = options.out or (None if options.only else RESULTS)
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "label": f"generated for {ARCHITECTURE}, not run",
        "architecture": ARCHITECTURE,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "order": ORDER,
        "models": [],
    }
    for subject in SUBJECTS:
        if options.only.lower() in subject.name.lower():
            model = {"model": subject.name, "depth": subject.depth, "aims": subject.aims, "rows": list[dict[str, Any]]()}
            result["models"].append(model)
            for row in rows(subject):
                model["rows"].append(row)
                print(f"{subject.name}: {json.dumps(row)}", flush=True)
                if out is not None:
                    out.write_text(json.dumps(result, indent=2) + "\n")
    if out == RESULTS:
        PAGE.write_text(page(json.loads(out.read_text())))


if __name__ == "__main__":
    main()
