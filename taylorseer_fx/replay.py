"""``python -m taylorseer_fx.replay FOLDER [--until PASS]``: run the passes again on a graph that ``backend.save_repro`` saved.

It prints a line a stage. With ``--until``, it stops after that stage and prints the graph that it made.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import fx

from taylorseer_fx.errors import TaylorSeerError
from taylorseer_fx.passes.pipeline import run_passes
from taylorseer_fx.passes.runner import StageRecord
from taylorseer_fx.repro import load


class _ReachedError(Exception):
    """Stops the passes after a stage that went well."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m taylorseer_fx.replay", description="Run the passes on a saved graph again.")
    parser.add_argument("folder", type=Path, help="what backend.save_repro wrote; a pickle, so only from people you trust")
    parser.add_argument("--until", metavar="PASS", help="stop after this stage, as explain() names it, and print its graph")
    parsed = parser.parse_args(arguments)
    names: list[str] = []

    def watch(record: StageRecord, gm: fx.GraphModule) -> None:
        names.append(record.name)
        left_out = f"  left out: {record.left_out}" if record.left_out else ""
        print(f"{record.name:24} {record.num_ops:6} ops {record.duration_ms:9.1f} ms{left_out}")
        if record.name == parsed.until:
            print(gm.print_readable(print_output=False))
            raise _ReachedError

    try:
        stored = load(parsed.folder)
        run_passes(stored.graph(), **stored.arguments, notify=lambda _topic, text: print(text, file=sys.stderr), watch=watch)
    except _ReachedError:
        return 0
    except TaylorSeerError as error:
        print("".join([str(error), *(f"\n{note}" for note in getattr(error, "__notes__", ()))]), file=sys.stderr)
        return 1
    if parsed.until is not None:
        print(f"there is no stage {parsed.until!r}; they are {', '.join(names)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
