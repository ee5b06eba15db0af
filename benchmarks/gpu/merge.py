"""Put the files of several runs together: python -m benchmarks.gpu.merge FLUX.json DIT.json ... [--out FILE]

Of a setting that two files hold, the later file's row counts. Runs that differ in what they were measured on do not mix.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.__main__ import RESULTS, ROOT
from benchmarks.gpu.recording import Record
from benchmarks.gpu.rows import LEFT_OUT, OURS
from benchmarks.readme import update_pages

SAME = ("device", "torch", "cuda", "diffusers", "python", "mode", "num_steps")


def merged(results: Sequence[dict[str, Any]], path: Path | None = None) -> Record:
    """One record of many.

    Raises:
        ValueError: they were measured on different machines, or in different modes.
    """
    for name in SAME:
        if len(values := {result[name] for result in results}) > 1:
            raise ValueError(f"the files differ in {name}: {', '.join(sorted(map(str, values)))}")
    header = {"date": max(result["date"] for result in results), **{name: results[0][name] for name in SAME}}
    header["copy_gigabytes_a_second"] = min(result["copy_gigabytes_a_second"] for result in results)
    rows = {(row["case"], row["setting"]): row for result in results for row in result["rows"]}
    measured = {f"{row['case']}, {row['setting']}{LEFT_OUT[name]}" for row in rows.values() for name in OURS if name in row}
    measured |= {f"{case}, all of it" for case, _ in rows}
    left_out = dict.fromkeys(what for result in results for what in result["left_out"] if what not in measured)
    baselines = {case: figures for result in results for case, figures in result["baselines"].items()}
    return Record(header, path, baselines, list(rows.values()), list(left_out))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    merged([json.loads(path.read_text()) for path in options.files], options.out).save()
    if options.out == RESULTS:
        update_pages(ROOT)


if __name__ == "__main__":
    main()
