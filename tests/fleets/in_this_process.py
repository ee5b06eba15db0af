"""Stands for the workers of a fleet: the same class, called in this process, batch after batch."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from taylorseer_fx.ray import Sampler, fleet


class InThisProcess:
    """Also stands for the dataset of their reports."""

    def __init__(self, drawing: Any, todo: Any) -> None:
        self.drawing, self.todo = drawing, todo

    def iter_batches(self, **_: object) -> Iterator[Any]:
        sampler = Sampler(self.drawing.build, **self.drawing.given)
        for table in self.todo:
            yield sampler({name: table[name].to_numpy() for name in table.column_names})


def replace_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the end of the test no Ray is started."""
    monkeypatch.setattr(fleet._Drawing, "run", lambda drawing, todo: InThisProcess(drawing, todo))
    monkeypatch.setattr(fleet, "connected", lambda *_: nullcontext())
    monkeypatch.setattr(fleet, "_must_fit", lambda _: None)
