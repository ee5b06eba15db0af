"""A run of a fleet: rows in batches that are the same in every run, each drawn by some worker and written by it.

A batch is a block of the dataset, so Ray gives it to a worker whole, and to another one if that dies. It is written under a name
made of its ids: a batch that is drawn twice is there once.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import ray
from filelock import FileLock, Timeout
from ray import cloudpickle

from taylorseer_fx.errors import ConfigError, TaylorSeerWarning
from taylorseer_fx.ray.connecting import connected
from taylorseer_fx.ray.files import files_of, finished_ids, remove_leftovers
from taylorseer_fx.ray.rows import batches, numbered
from taylorseer_fx.ray.sampler import Build, Sampler, must_be_at_least

RUN_FILE, LOCK_FILE = "run.json", ".run.lock"


@dataclass(frozen=True)
class Worker:
    """What a worker reported last: its machine and process, the seconds of its first call, and what that found in the cache."""

    process: str
    first_call_seconds: float
    cache_hits: int
    cache_misses: int


@dataclass(frozen=True)
class Summary:
    """A finished run. ``num_found``: rows that were finished before it; ``workers`` in the order of their first batches."""

    num_rows: int
    num_found: int
    seconds: float
    workers: tuple[Worker, ...]


def sample(
    build: Build,
    rows: int | Sequence[Mapping[str, Any]] | pa.Table,
    out: str | Path,
    *,
    workers: int = 1,
    batch_size: int = 16,
    seed: int = 0,
    files: str = "parquet",
    settings: Mapping[str, Any] | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    address: str | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Summary:
    """Draw a picture for each row, with several workers, and write them to the folder ``out``.

    Row for row the result is the same to the bit, whatever the number of workers, and whichever of them died: a batch has the
    same rows in every run, and a row's noise follows from its ``id``. A run that was broken off goes on if it is called again:
    finished batches are not drawn again.

    Args:
        build, batch_size, seed, files: as of ``Sampler``.
        rows: what is drawn: rows by name, a table, or just a count. ``id`` is their position if they have none.
        out: folder, is created if necessary; on a cluster, one that all machines share.
        workers: processes that draw. The first compiles, the others wait for its first batch, and find its code in the cache.
        settings: what else the pictures depend on, for JSON; a run that goes on must have the same.
        num_cpus, num_gpus: of a worker. It has as many threads as cores.
        address: of a cluster; None: the Ray that is connected, else one of this process's own.
        on_rows: is called with the number of rows that are finished, at the beginning and after each batch.

    Raises:
        ConfigError: there are no rows, a setting is out of its range, ``out`` holds a run of others or is being written to,
            ``build`` cannot be sent to a worker, no cluster is at ``address``, or Ray has less than the workers take.
        Exception: what ``build`` or ``draw`` raise in a worker, as Ray passes it on.
    """
    table, out = numbered(rows), Path(out).absolute()
    must_be_at_least(1, workers=workers, batch_size=batch_size)
    must_be_at_least(0, seed=seed)
    files_of(files)
    _must_be_picklable(build)
    identity = {"seed": seed, "batch_size": batch_size, "files": files, "rows": _digest(table), "settings": dict(settings or {})}
    given = {"batch_size": batch_size, "seed": seed, "out": str(out), "files": files, "run": uuid4().hex}
    out.mkdir(parents=True, exist_ok=True)
    begun, reports = time.perf_counter(), tuple[Worker, ...]()
    with _alone(out):
        _must_be_the_same(out, identity)
        remove_leftovers(out)
        found = finished_ids(out)
        on_rows(len(found))
        if todo := list(batches(table, batch_size, found)):
            drawing = _Drawing(build, given, {"num_cpus": num_cpus, "num_gpus": num_gpus}, min(workers, len(todo)))
            with connected(workers, address, num_cpus):
                _must_fit(drawing)
                reports = _reports(drawing.run(todo), len(found), on_rows)
            _must_be_complete(table, out)
            remove_leftovers(out)
    return Summary(len(table), len(found), time.perf_counter() - begun, reports)


@dataclass(frozen=True)
class _Drawing:
    """The workers: what each is given, and what each takes up."""

    build: Build
    given: Mapping[str, Any]
    resources: Mapping[str, float]
    workers: int

    def run(self, todo: Sequence[pa.Table]) -> Any:
        """A dataset of reports on the rows of ``todo``, a table a batch, as they are drawn."""
        return ray.data.from_arrow(list(todo)).map_batches(
            Sampler,
            fn_constructor_args=(self.build,),
            fn_constructor_kwargs=dict(self.given),
            batch_size=None,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=self.workers),
            **{name: amount for name, amount in self.resources.items() if amount},
        )


def _reports(dataset: Any, num_finished: int, on_rows: Callable[[int], None]) -> tuple[Worker, ...]:
    workers: dict[str, Worker] = {}
    said: set[str] = set()
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        num_finished += len(batch["id"])
        on_rows(num_finished)
        for last in {process: i for i, process in enumerate(batch["worker"])}.values():
            row = {name: column[last] for name, column in batch.items()}
            seconds, hits, misses = float(row["first_call_seconds"]), int(row["cache_hits"]), int(row["cache_misses"])
            workers[row["worker"]] = Worker(str(row["worker"]), seconds, hits, misses)
        said |= _warn(set(map(str, batch["warning"])) - said)
    return tuple(workers.values())


def _warn(texts: set[str]) -> set[str]:
    """Issue what workers warned of, each once."""
    for text in texts - {""}:
        warnings.warn(f"taylorseer_fx: {text}", TaylorSeerWarning, stacklevel=4)
    return texts


def _must_be_picklable(build: Build) -> None:
    try:
        cloudpickle.dumps(build)
    except Exception as error:
        hint = f"It cannot be pickled ({error}). Load and compile the model inside of it, rather than outside."
        raise ConfigError("build", "a function that can be sent to a worker", build, hint) from error


def _digest(table: pa.Table) -> str:
    """Of the rows: what a folder is a run of."""
    content = json.dumps(table.to_pylist(), default=str).encode()
    return f"{len(table)}, {hashlib.sha256(content).hexdigest()[:16]}"


def _must_fit(drawing: _Drawing) -> None:
    """Else Ray would wait, without a word, for a machine to join."""
    have = ray.cluster_resources()
    for name, kind in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        amount, there = drawing.resources[name], have.get(kind, 0.0)
        if amount * drawing.workers > there:
            allowed = f"at most what this Ray has for all workers together, {there:g} {kind}s"
            raise ConfigError(name, allowed, f"{amount:g} for each of {drawing.workers}", "Ask for fewer workers.")


def _must_be_the_same(out: Path, identity: Mapping[str, Any]) -> None:
    path, wanted = out / RUN_FILE, json.loads(json.dumps(identity))
    if path.exists():
        held = json.loads(path.read_text())
        others = {name: held.get(name) for name in wanted if held.get(name) != wanted[name]}
        if others:
            hint = f"It holds a run of {others}. Give that one's settings to go on with it, or another folder to begin anew."
            raise ConfigError("out", "a new folder, or one with a run of the same rows and settings", str(out), hint)
    elif finished_ids(out):
        hint = f"It holds pictures, but no {RUN_FILE} that tells of which run."
        raise ConfigError("out", "a new folder, or one with a run of the same rows and settings", str(out), hint)
    path.write_text(json.dumps(wanted, indent=1) + "\n")


def _must_be_complete(table: pa.Table, out: Path) -> None:
    missing = sorted(set(table.column("id").to_pylist()) - finished_ids(out))
    if missing:
        hint = f"{len(missing)} rows, such as {missing[0]}, were written by workers, but are not there."
        raise ConfigError("out", "a folder that all machines of the cluster share", str(out), hint)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Be the only run that writes to ``out``."""
    try:
        lock = FileLock(out / LOCK_FILE).acquire(timeout=0)
    except Timeout:
        raise ConfigError("out", "a folder that no other run is writing to", str(out)) from None
    with lock:
        yield
