"""What workers of the tests build: a tiny model, whose process may die in the middle of a run, and what is wrong otherwise."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taylorseer_fx import taylorseer_backend
from tests.warm_worker import TIMES, Model


@dataclass(frozen=True)
class Noted:
    """A line in ``log`` for each call: the process, and the ids that it draws."""

    log: Path
    build: Callable[[], Any]

    def __call__(self) -> Any:
        draw = self.build()

        def noted(rows: dict[str, Any], generators: list[torch.Generator]) -> Any:
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {' '.join(map(str, rows['id']))}\n")
            return draw(rows, generators)

        return noted

    def drawn(self) -> list[tuple[int, tuple[int, ...]]]:
        """Process and ids of each call so far."""
        lines = [[int(word) for word in line.split()] for line in self.log.read_text().splitlines()]
        return [(process, tuple(ids)) for process, *ids in lines]


@dataclass(frozen=True)
class Tiny:
    """A tiny model and its sampling loop; pictures are float32 ``[5, 8]``, or uint8 ``as_bytes``.

    ``dies_at``: a row in whose batch the process kills itself in mid-generation, once: unless there is the file ``flag``.
    """

    compiler: str = "eager"
    as_bytes: bool = False
    dies_at: int | None = None
    flag: Path | None = None

    def __call__(self) -> Any:
        backend = taylorseer_backend(order=1, interval=3, warmup=2, compiler=self.compiler)
        model = torch.compile(Model(), backend=backend, dynamic=False)

        def draw(rows: dict[str, Any], generators: list[torch.Generator]) -> Tensor:
            x = torch.stack([torch.randn(5, 8, generator=each) for each in generators])
            for step, time in enumerate(TIMES):
                if step == 3 and self.dies_at in rows["id"]:
                    self._die_once()
                with backend.stream("run", step=step):
                    x = x - 0.1 * model(x, torch.full((len(x),), time))
            return (x.sigmoid() * 255).to(torch.uint8) if self.as_bytes else x

        return draw

    def _die_once(self) -> None:
        if self.flag is not None and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def uncompiled() -> Any:
    model = Model()
    return lambda rows, generators: model(torch.ones(len(generators), 5, 8), torch.ones(len(generators)))


def one_short() -> Any:
    return lambda rows, generators: np.zeros((len(generators) - 1, 4, 4))


def failing() -> Any:
    raise RuntimeError("no weights here")
