"""A bug report that runs: the traced graph, without weights, and what the passes were given.

FOLDER/report.txt    versions, settings, the error if there was one, and the graph as text
FOLDER/passes.pkl    the same for ``python -m taylorseer_fx.replay FOLDER``
"""

import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import fx

from taylorseer_fx.errors import ConfigError
from taylorseer_fx.remade import StoredPasses
from taylorseer_fx.versions import versions

REPORT, PASSES = "report.txt", "passes.pkl"


def save(folder: Path, traced: fx.GraphModule, arguments: Mapping[str, Any], error: BaseException | None = None) -> bool:
    """Write both files, making the folder if need be; False where the graph cannot be stored, so that one is only text."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*(f"{name}: {value}" for name, value in {**versions(), **arguments}.items()), *([f"\n{error}"] if error else [])]
    graph = traced.print_readable(print_output=False)
    (folder / REPORT).write_text("\n".join([*lines, "", graph, ""]))
    stored = StoredPasses.of(traced, arguments)
    if stored is not None:
        (folder / PASSES).write_bytes(pickle.dumps(stored))
    return stored is not None


def saved_after(error: BaseException, traced: fx.GraphModule, arguments: Mapping[str, Any]) -> str:
    """Save what led to ``error`` in a new temporary folder, and name it."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="taylorseer_fx_"))
        can_run = save(folder, traced, arguments, error)
    except Exception as failure:  # the error at hand must not be lost over a report of it
        return f"No report of it could be saved: {type(failure).__name__}: {failure}."
    how = f"; python -m taylorseer_fx.replay {folder} runs the passes again" if can_run else ""
    return f"The graph, without weights, is in {folder}{how}. Please send that folder with your report."


def load(folder: Path) -> StoredPasses:
    """Load what ``save`` stored. It is a pickle, which can run any code: load only what you trust.

    Raises:
        ConfigError: there is no such file in the folder.
    """
    path = folder / PASSES
    if not path.is_file():
        raise ConfigError("folder", f"one that holds a {PASSES}", str(folder), "backend.save_repro(folder) writes it.")
    stored: StoredPasses = pickle.loads(path.read_bytes())
    return stored
