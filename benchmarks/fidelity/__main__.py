"""Measure how near forecasts come to runs in full, and write docs/fidelity.md with its picture.

python -m benchmarks.fidelity [--only digits] [--granularity module]     more than an hour; goes on where it was
python -m benchmarks.fidelity --document                                 write the page from what is recorded
"""

import argparse
from pathlib import Path

import torch

from benchmarks.fidelity.cells import GRANULARITIES
from benchmarks.fidelity.document import page, save_plots
from benchmarks.fidelity.measure import Record, measure, recorded
from benchmarks.fidelity.subjects import SUBJECTS

DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[subject.name for subject in SUBJECTS], help="of the two models")
    parser.add_argument("--granularity", choices=GRANULARITIES, help="of the two")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--document", action="store_true", help="measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    wanted = [subject for subject in SUBJECTS if options.only in (None, subject.name)]
    for subject in [] if options.document else wanted:
        record = Record(subject.name)
        for granularity in GRANULARITIES:
            if options.granularity in (None, granularity):
                measure(subject, granularity, record, lambda text: print(text, flush=True))
    if options.document or (options.only is None and options.granularity is None):
        (DOCS / "fidelity.md").write_text(page(recorded()))
        save_plots(recorded(), DOCS / "fidelity")


if __name__ == "__main__":
    main()
