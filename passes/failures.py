"""The warning about a pass that failed and was left out, so that the fault can be reported and repaired."""

import platform
from pathlib import Path
from traceback import extract_tb

import torch

from taylorseer_fx.version import __version__

HERE = Path(__file__).parent
RUNNING = ("pipeline.py", "runner.py", "lower.py")  # these only call passes


def failure_report(name: str, error: Exception, price: str) -> str:
    """The text for the user: what failed, what that costs, and what a report should hold.

    Args:
        name: the pass.
        error: what it raised.
        price: what is worse without the pass.
    """
    versions = f"taylorseer_fx {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return (
        f"the pass {name!r} failed and was left out: {price}, and the results are right all the same. Please report this line: "
        f"{type(error).__name__}: {error} (in {_where(error)}; {versions}). "
        'TORCH_LOGS="+taylorseer_fx" prints where the error came from.'
    )


def _where(error: Exception) -> str:
    """The innermost line of a pass, or of whatever it called where none is on the way."""
    frames = extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).parent == HERE and Path(frame.filename).name not in RUNNING]
    frame = (ours or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
