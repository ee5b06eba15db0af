"""The command ``taylorseer-fx``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from taylorseer_fx.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="taylorseer-fx", description="Forecast most steps of a Diffusion Transformer.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="generate digits three ways, and show time and pictures side by side")
    demo.add_argument("--quick", action="store_true", help="fewer pictures and steps")
    demo.add_argument(
        "--out", type=Path, default=Path("taylorseer-demo.png"), help="where the picture goes (default: %(default)s)"
    )
    demo.add_argument("--json", type=Path, help="where to write the measured numbers as well")
    args = parser.parse_args(argv)
    return _demo(args.quick, args.out, args.json)


def _demo(quick: bool, out: Path, json_out: Path | None) -> int:
    try:
        from rich.console import Console

        from taylorseer_fx.demo.main import run_demo
        from taylorseer_fx.demo.runs import DemoConfig
    except ModuleNotFoundError as error:
        print(f'taylorseer-fx demo needs {error.name}: pip install "taylorseer-fx[demo]"', file=sys.stderr)
        return 1
    run_demo(DemoConfig(num_steps=20, rows=1) if quick else DemoConfig(), out, Console(), json_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
