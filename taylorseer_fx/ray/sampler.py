"""The actor class: draws the pictures of rows, each from the noise of its id, in batches of one size."""

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray

from taylorseer_fx.compat import compile_counters
from taylorseer_fx.errors import ConfigError, TaylorSeerWarning
from taylorseer_fx.ray.files import PICTURE, as_array, files_of
from taylorseer_fx.ray.first_call import first_call
from taylorseer_fx.ray.noise import generators

Array = NDArray[Any]
Draw = Callable[[dict[str, Array], list[torch.Generator]], Any]
Build = Callable[[], Draw]

NOTHING_COMPILED = (
    "nothing was compiled in a worker, so nothing is forecast. build() must load and compile the model itself: one that was "
    "compiled in another process arrives without its compiled form."
)


def must_be_at_least(least: int, **given: int) -> None:
    """Check settings by name.

    Raises:
        ConfigError: one is no int, or lower.
    """
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(name, f"an int of at least {least}", value)


class Sampler:
    """The class to give to ``ray.data.Dataset.map_batches``; an instance is a worker. Rows need a column ``id``.

    Every call of ``draw`` is of ``batch_size`` rows, so that one shape is compiled: a smaller batch is filled up with its last
    row, which is drawn again and dropped; a larger one is cut.

    Args:
        build: called once in each worker, without arguments. It loads the model, compiles it, and returns
            ``draw(rows, generators)``, which returns a picture for each row: a tensor or array ``[n, ...]``, or a list of
            pictures of PIL. ``rows`` has the columns of the dataset as arrays, ``generators`` a generator for each row, as
            pipelines of diffusers take them.
        batch_size: rows of each call of ``draw``.
        seed: of the noise; a row's is made of it and the row's ``id``, an integer of 0 to 2**32 - 1.
        out: folder where each batch is written, if any; on a cluster, one that all machines share. Batches that are there already
            are not drawn again. None: pictures are returned as the column ``picture``.
        files: "parquet", a file for each batch, or "png", a file for each row.
        run: names the run in which one worker compiles and the others wait. Make it once for all workers, with ``uuid4().hex``;
            None: nobody waits.

    Raises:
        ConfigError: in the worker: a setting is out of its range.
    """

    def __init__(
        self,
        build: Build,
        *,
        batch_size: int = 16,
        seed: int = 0,
        out: str | Path | None = None,
        files: str = "parquet",
        run: str | None = None,
    ) -> None:
        must_be_at_least(1, batch_size=batch_size)
        must_be_at_least(0, seed=seed)
        self._batch_size, self._seed, self._run = batch_size, seed, run or uuid4().hex
        self._out = Path(out).absolute() if out is not None else None
        self._files = files_of(files)
        self._first_call_seconds: float | None = None
        self._draw = build()

    def __call__(self, batch: dict[str, Array]) -> dict[str, Array]:
        """Draw the pictures of ``batch``; returns its columns and ``picture``, or with ``out`` a report on each row.

        The report: ``id``; ``worker``, its machine and process; ``first_call_seconds``, of its first call of ``draw``, without
        the wait for another's; ``cache_hits`` and ``cache_misses`` of compiled graphs, in it so far; ``warning``, a text or "".

        Raises:
            ConfigError: there is no column ``id``, or ``draw`` returns another number of pictures.
        """
        if "id" not in batch:
            raise ConfigError("id", "a column of the rows", sorted(batch), "A row's noise follows from its id.")
        ids = batch["id"]
        if not len(ids):
            return batch
        if self._out is None:
            return {**batch, PICTURE: self._pictures(batch)}
        with _heard() as warned:
            if not self._files.are_written(self._out, ids):
                self._files.write(self._out, batch, self._pictures(batch))
        report = {
            "worker": f"{platform.node()}:{os.getpid()}",
            "first_call_seconds": self._first_call_seconds or 0.0,
            "cache_hits": compile_counters["aot_autograd"]["autograd_cache_hit"],
            "cache_misses": compile_counters["aot_autograd"]["autograd_cache_miss"],
            "warning": "\n\n".join(warned),
        }
        return {"id": ids, **{name: np.full(len(ids), value) for name, value in report.items()}}

    def _pictures(self, batch: dict[str, Array]) -> Array:
        """``[n, ...]``."""
        size, count = self._batch_size, len(batch["id"])
        places = [np.minimum(np.arange(begin, begin + size), count - 1) for begin in range(0, count, size)]
        drawn = [self._draw_rows({name: column[rows] for name, column in batch.items()}) for rows in places]
        return np.concatenate(drawn)[:count]

    def _draw_rows(self, rows: dict[str, Array]) -> Array:
        """The pictures of ``batch_size`` rows."""
        noise = generators(self._seed, rows["id"])
        if self._first_call_seconds is not None:
            pictures = self._call(rows, noise)
        else:
            with first_call(self._run):
                begun = time.perf_counter()
                pictures = self._call(rows, noise)
                self._first_call_seconds = time.perf_counter() - begun
            if not compile_counters["stats"]["unique_graphs"]:
                warnings.warn(f"taylorseer_fx: {NOTHING_COMPILED}", TaylorSeerWarning, stacklevel=2)
        return pictures

    @torch.no_grad()
    def _call(self, rows: dict[str, Array], noise: list[torch.Generator]) -> Array:
        pictures = as_array(self._draw(rows, noise))
        if len(pictures) != len(noise):
            allowed = f"a function that returns {len(noise)} pictures for as many rows"
            raise ConfigError("draw", allowed, f"{len(pictures)} of them")
        return pictures


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect the texts of our warnings, for the driver to show; others go where they would."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TaylorSeerWarning)
        yield texts
    for entry in caught:
        if issubclass(entry.category, TaylorSeerWarning):
            texts.append(str(entry.message).removeprefix("taylorseer_fx: "))
        else:
            warnings.showwarning(entry.message, entry.category, entry.filename, entry.lineno)
