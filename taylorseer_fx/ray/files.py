"""What is written: finished files, each put in its place in one go, so that what is there is whole.

A batch is one Parquet file, named by its ids, or a PNG for each row, named by its id. Written twice, it is the same file.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from taylorseer_fx.errors import ConfigError

PICTURE = "picture"
UNFINISHED = ".part"
Array = NDArray[Any]


class Files(Protocol):
    """A way of writing."""

    def are_written(self, out: Path, ids: Array) -> bool:
        """Whether the pictures of a batch are all there."""

    def write(self, out: Path, columns: dict[str, Array], pictures: Any) -> None:
        """Write a batch: its columns, ``id`` among them, and a picture for each row."""

    def ids(self, out: Path) -> Iterator[int]:
        """Of the rows that are there."""


class Parquet:
    """A file for each batch: the columns of its rows and ``picture``, a tensor of one shape for all of its rows."""

    def are_written(self, out: Path, ids: Array) -> bool:
        return self._path(out, ids).exists()

    def write(self, out: Path, columns: dict[str, Array], pictures: Any) -> None:
        tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(as_array(pictures)))
        table = pa.table({**{name: _column(values) for name, values in columns.items()}, PICTURE: tensor})
        with _in_one_go(self._path(out, columns["id"])) as path:
            pq.write_table(table, path)

    def ids(self, out: Path) -> Iterator[int]:
        for path in sorted(out.glob("rows-*.parquet")):
            yield from pq.read_table(path, columns=["id"], partitioning=None).column("id").to_pylist()

    def _path(self, out: Path, ids: Array) -> Path:
        digest = hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).hexdigest()[:12]
        return out / f"rows-{int(ids[0]):010d}-{digest}.parquet"


class Png:
    """A file for each row; other columns are not kept. Pictures are uint8 ``[h, w]``, ``[h, w, 3]`` or of PIL."""

    def are_written(self, out: Path, ids: Array) -> bool:
        return all(self._path(out, row).exists() for row in ids)

    def write(self, out: Path, columns: dict[str, Array], pictures: Any) -> None:
        from PIL import Image

        for row, pixels in zip(columns["id"], as_array(pictures), strict=True):
            if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
                allowed = "uint8 of shape [h, w], [h, w, 3] or [h, w, 4], or of PIL, to be written as PNG"
                raise ConfigError(
                    "picture", allowed, f"{pixels.dtype} of shape {list(pixels.shape)}", 'files="parquet" takes any.'
                )
            with _in_one_go(self._path(out, row)) as path:
                Image.fromarray(pixels).save(path, "PNG")

    def ids(self, out: Path) -> Iterator[int]:
        yield from (int(path.stem) for path in out.glob("*.png") if re.fullmatch(r"\d{10}", path.stem))

    def _path(self, out: Path, row: int) -> Path:
        return out / f"{int(row):010d}.png"


FILES: dict[str, Callable[[], Files]] = {"parquet": Parquet, "png": Png}


def files_of(kind: str) -> Files:
    """The way of writing that is named ``kind``.

    Raises:
        ConfigError: there is none of that name.
    """
    if kind not in FILES:
        raise ConfigError("files", " or ".join(map(repr, FILES)), kind)
    return FILES[kind]()


def finished_ids(out: str | Path) -> set[int]:
    """Collect the ids of the rows whose pictures are finished in the folder ``out``, in files of either kind."""
    return {row for kind in FILES for row in files_of(kind).ids(Path(out))}


def read(out: str | Path) -> dict[str, Array]:
    """Read a folder of Parquet files: its columns, by name, in the order of ids; ``picture`` is ``[n, ...]``.

    Raises:
        ConfigError: there is no such file in ``out``, or the pictures are not of one shape.
    """
    tables = [pq.read_table(path, partitioning=None) for path in sorted(Path(out).glob("rows-*.parquet"))]
    if not tables:
        raise ConfigError("out", "a folder with finished Parquet files", str(out))
    pictures = [table.column(PICTURE).combine_chunks().to_numpy_ndarray() for table in tables]
    if len(shapes := {each.shape[1:] for each in pictures}) > 1:
        raise ConfigError("out", "a folder of pictures of one shape", str(out), f"There are {sorted(shapes)}.")
    columns = pa.concat_tables([table.drop_columns(PICTURE) for table in tables])
    order = np.argsort(columns.column("id").to_numpy())
    read = {name: columns.column(name).to_numpy()[order] for name in columns.column_names}
    return {**read, PICTURE: np.concatenate(pictures)[order]}


def as_array(pictures: Any) -> Array:
    """``[n, ...]`` of a tensor, an array, or a sequence of pictures of PIL, tensors or arrays."""
    if isinstance(pictures, torch.Tensor):
        return pictures.detach().cpu().numpy()
    if isinstance(pictures, np.ndarray):
        return pictures
    each: Sequence[Array] = [as_array(one) if isinstance(one, torch.Tensor) else np.asarray(one) for one in pictures]
    return np.stack(each)


def remove_leftovers(out: Path) -> None:
    """Remove what workers that are gone had begun to write."""
    for path in out.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


@contextmanager
def _in_one_go(path: Path) -> Iterator[Path]:
    """Yield a path of the same folder to write to; it takes the place of ``path`` once that is done."""
    beside = path.with_name(f".{path.name}.{uuid4().hex}{UNFINISHED}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _column(values: Array) -> pa.Array:
    return pa.array(values if values.ndim == 1 else list(values))
