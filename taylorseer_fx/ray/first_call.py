"""One worker makes the first call of a run, and so compiles; those that start beside it wait, and find its code in the cache.

Workers meet in the cache's folder, so each machine of a cluster has a first worker of its own, unless they share the folder. The
lock is the operating system's: it is free again when its holder dies, and the next worker compiles instead.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock  # torch needs it, too

from taylorseer_fx.compat import inductor_cache_folder

DAY_S = 24 * 3600.0


@contextmanager
def first_call(run: str) -> Iterator[None]:
    """Make a worker's first call inside. ``run`` is the same string in all workers of a run, and in no other run."""
    folder = Path(inductor_cache_folder()) / "taylorseer_fx_runs"
    folder.mkdir(parents=True, exist_ok=True)
    _remove_old(folder)
    done = folder / f"{run}.done"
    with FileLock(folder / f"{run}.lock"):
        if not done.exists():
            yield
            done.touch()
            return
    yield


def _remove_old(folder: Path) -> None:
    for path in folder.iterdir():
        try:
            if time.time() - path.stat().st_mtime > DAY_S:
                path.unlink()
        except FileNotFoundError:  # another worker was faster
            continue
