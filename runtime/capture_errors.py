"""Find the operator that a capture failed at: the line of generated code in the traceback."""

import linecache
import traceback
from pathlib import Path

import torch

_TORCH = str(Path(torch.__file__).parent)


def describe_failure(error: BaseException) -> str:
    """Describe a failure in one line: the failed line of the graph's code (FX's or Inductor's), and the error raised there."""
    what = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {what[0]}" if what else type(error).__name__
    line = _failed_line(error)
    return f"`{line}`: {reason}" if line else reason


def _failed_line(error: BaseException) -> str:
    """The line of the first frame below ours that is not torch's: the generated code, whatever it calls in turn."""
    frames = list(traceback.walk_tb(error.__traceback__))
    ours = [i for i, (frame, _) in enumerate(frames) if str(frame.f_globals.get("__name__", "")).startswith("taylorseer_fx.")]
    for frame, number in frames[ours[-1] + 1 :] if ours else ():
        if not frame.f_code.co_filename.startswith(_TORCH):
            statement = linecache.getline(frame.f_code.co_filename, number, frame.f_globals).strip()
            return statement.partition(";")[0]
    return ""
