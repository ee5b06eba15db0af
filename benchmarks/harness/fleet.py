"""Pictures for a distribution, drawn by several workers of Ray: batch ``i`` is the same as in one process, whoever draws it."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taylorseer_fx.bench.running import Case, Method

Batches = Callable[[int], Tensor]


@dataclass(frozen=True)
class BatchesOfMethod:
    """Makes a method ready, in a worker; the number of a batch is the seed of a run."""

    method: Method
    case: Case

    def __call__(self) -> Batches:
        return self.method.prepare(self.case).run


@dataclass(frozen=True)
class _Rows:
    """As ``taylorseer_fx.ray`` has it: a row is a batch, its id the batch's number, and its picture all pictures of it."""

    build: Callable[[], Batches]

    def __call__(self) -> Callable[..., Tensor]:
        batch = self.build()

        def draw(rows: dict[str, Any], _generators: object) -> Tensor:
            return torch.stack([batch(int(number)) for number in rows["id"]])

        return draw


def draw_batches(build: Callable[[], Batches], count: int, workers: int) -> Tensor:
    """The batches 0 to ``count - 1``, ``[count * n, ...]`` of ``n`` pictures each.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """
    from taylorseer_fx.ray import read, sample

    with tempfile.TemporaryDirectory() as folder:
        sample(_Rows(build), count, folder, workers=workers, batch_size=1)
        drawn: Tensor = torch.from_numpy(read(folder)["picture"])
    return drawn.flatten(0, 1)
