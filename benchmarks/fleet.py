"""Record a fleet on this machine: digits by two workers of Ray, one of which is killed, beside one process.

python -m benchmarks.fleet [--count 640] [--batch 20]

Kept in ``benchmarks/results/fleet.json``: whether each row is there once and equal to the bit, the first call of each worker on a
cache that is empty at the start, the seconds of both, and what a run that was broken off draws again.
"""

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import RESULTS, header
from taylorseer_fx.compat import inductor_cache_in
from taylorseer_fx.ray import Sampler, Summary, finished_ids, read, sample
from taylorseer_fx.ray.shipped import ShippedBuild, labelled

SETTINGS = {"order": 1, "speedup": 3.0, "num_steps": 20, "granularity": "module"}
COUNT, BATCH, WORKERS = 640, 20, 2
DEATH_AFTER_S = 0.2  # in mid-generation


@dataclass(frozen=True)
class DiesOnce:
    """Kills its process a little into the batch that holds the row ``at``, unless there is the file ``flag``."""

    build: ShippedBuild
    at: int
    flag: str

    def __call__(self) -> Callable[..., Any]:
        draw, flag = self.build(), Path(self.flag)

        def dying(rows: dict[str, Any], generators: list[torch.Generator]) -> Any:
            if self.at in rows["id"] and not flag.exists():
                flag.touch()
                threading.Timer(DEATH_AFTER_S, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return draw(rows, generators)

        return dying


@contextmanager
def one_thread() -> Iterator[None]:
    """As a worker of one core has it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_fleet(build: ShippedBuild, folder: Path, count: int, batch: int) -> tuple[Summary, dict[str, Any]]:
    """The fleet with one death, on an empty cache."""
    flag = folder / "killed"
    done = sample(DiesOnce(build, count // 2, str(flag)), labelled(count), folder / "fleet", workers=WORKERS, batch_size=batch)
    if not flag.exists():
        raise RuntimeError("nobody was killed")
    return done, read(folder / "fleet")


def run_alone(build: ShippedBuild, count: int, batch: int) -> tuple[float, Any]:
    """Seconds, without loading and the first batch, and the pictures of this one process."""
    table = labelled(count)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    with one_thread():
        sampler = Sampler(build, batch_size=batch)
        sampler({name: column[:batch] for name, column in columns.items()})
        begun = time.perf_counter()
        pictures = sampler(columns)["picture"]
    return time.perf_counter() - begun, pictures


def run_broken_off(build: ShippedBuild, folder: Path, count: int, batch: int) -> dict[str, int]:
    """A run that ends half way, and goes on: how many rows were finished, and how many of these were written again."""
    out = folder / "resumed"

    def stop(finished: int) -> None:
        if finished >= count // 2:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        sample(build, labelled(count), out, workers=WORKERS, batch_size=batch, on_rows=stop)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    num_finished = len(finished_ids(out))
    sample(build, labelled(count), out, workers=WORKERS, batch_size=batch)
    redone = sum(path.stat().st_mtime_ns != written for path, written in before.items())
    return {"finished": num_finished, "rows": len(read(out)["id"]), "redone": redone * batch}


def measure(count: int, batch: int, compiler: str = "inductor") -> dict[str, Any]:
    """All of it; "eager" is for tests."""
    steps = int(SETTINGS["num_steps"])
    build = ShippedBuild("digits", steps, guidance=2.0, settings=SETTINGS | {"compiler": compiler})
    with tempfile.TemporaryDirectory() as name, inductor_cache_in(f"{name}/cache"):
        folder = Path(name)
        done, drawn = run_fleet(build, folder, count, batch)
        resumed = run_broken_off(build, folder, count, batch)
        seconds, pictures = run_alone(build, count, batch)
    workers = sorted(done.workers, key=lambda worker: not worker.cache_misses)  # the one that compiled, and those that came later
    return {
        "rows": len(drawn["id"]),
        "distinct": len(set(drawn["id"].tolist())),
        "bit_equal": bool(np.array_equal(drawn["picture"], pictures)),
        "batch": batch,
        "settings": SETTINGS,
        "workers": [asdict(worker) for worker in workers],
        "fleet_s": done.seconds,
        "alone_s": seconds,
        "resumed": resumed,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT, help="rows (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=BATCH, help="rows of a call (default: %(default)s)")
    args = parser.parse_args()
    content = header() | measure(args.count, args.batch)
    (RESULTS / "fleet.json").write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
