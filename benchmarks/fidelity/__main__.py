"""Measure how near forecasts come to runs in full, and write docs/fidelity.md.

python -m benchmarks.fidelity [--only digits] [--granularity module]     more than an hour; goes on where it was
"""

import argparse
from pathlib import Path

import torch

from benchmarks.fidelity.cells import GRANULARITIES
from benchmarks.fidelity.measure import Record, measure
from benchmarks.fidelity.subjects import SUBJECTS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fidelity.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[subject.name for subject in SUBJECTS], help="of the two models")
    parser.add_argument("--granularity", choices=GRANULARITIES, help="of the two")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = Record(RESULTS)
    for subject in SUBJECTS:
        for granularity in GRANULARITIES:
            if options.only in (None, subject.name) and options.granularity in (None, granularity):
                measure(subject, granularity, record, lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
