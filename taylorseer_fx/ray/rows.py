"""What is drawn: rows with an ``id``, cut into batches that are the same in every run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from taylorseer_fx.errors import ConfigError
from taylorseer_fx.ray.files import finished_ids
from taylorseer_fx.ray.noise import NUM_IDS

Columns = dict[str, np.ndarray[Any, Any]]


def numbered(rows: int | Sequence[Mapping[str, Any]] | pa.Table) -> pa.Table:
    """Make a table of rows that have an ``id``, int64; those without get their position.

    Raises:
        ConfigError: there are none, or an id is no integer of 0 to 2**32 - 1, or comes twice.
    """
    if isinstance(rows, int):
        table = pa.table({"id": np.arange(max(rows, 0))})
    else:
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist([dict(row) for row in rows])
    if not len(table):
        raise ConfigError("rows", "at least one row, or a count of at least 1", rows if isinstance(rows, int) else "none")
    if "id" not in table.column_names:
        table = table.append_column("id", pa.array(np.arange(len(table))))
    return table.set_column(table.column_names.index("id"), "id", pa.array(_checked(table.column("id").to_numpy())))


def _checked(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= NUM_IDS:
        got = next((row for row in ids.tolist() if not isinstance(row, int) or not 0 <= row < NUM_IDS), ids.dtype)
        raise ConfigError("id", "a column of integers of 0 to 2**32 - 1", got, "A row's noise follows from its id.")
    values, counts = np.unique(ids, return_counts=True)
    if counts.max() > 1:
        raise ConfigError("id", "different in each row", int(values[counts.argmax()]), "It comes more than once.")
    return ids.astype(np.int64)


def batches(table: pa.Table, size: int, finished: set[int]) -> Iterator[pa.Table]:
    """Cut ``table`` into batches of ``size`` rows, in order, and leave out those of which every row is finished."""
    for begin in range(0, len(table), size):
        batch = table.slice(begin, size)
        if not finished.issuperset(batch.column("id").to_pylist()):
            yield batch


def unfinished(rows: Dataset, out: str | Path) -> Dataset:
    """Leave out the rows of a dataset whose ``id`` is finished in the folder ``out``."""
    done = np.array(sorted(finished_ids(out)), dtype=np.int64)

    def those_left(batch: Columns) -> Columns:
        keep = ~np.isin(batch["id"], done)
        return {name: column[keep] for name, column in batch.items()}

    return rows.map_batches(those_left)
