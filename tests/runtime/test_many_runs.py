"""A thousand runs with CUDA graphs (a stand-in for them): what is held is bounded, and memory that was freed is left alone."""

import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from taylorseer_fx import TaylorSeerBackend
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.runtime.buffers import BufferLayout
from tests.runtime.graph_stand_in import StandIn
from tests.zoo import tiny, tiny_inputs

NUM_STEPS = 5
POISON = 0xFF  # of a float it makes NaN


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class PoisonedMemory:
    """In place of ``BufferLayout.allocate``. Freed memory is poisoned, and given out again like an allocator's, never given back:
    so it shows if it was written to.
    """

    def __init__(self, allocate: Callable[..., list[Tensor]]) -> None:
        self._allocate = allocate
        self._freed: list[Tensor] = []
        self.num_allocated = 0

    def __call__(self, layout: BufferLayout, args: Any) -> list[Tensor]:
        return [self._move(buffer) for buffer in self._allocate(layout, args)]

    def _move(self, buffer: Tensor) -> Tensor:
        self.num_allocated += 1
        fitting = [i for i, memory in enumerate(self._freed) if memory.numel() == buffer.nbytes]
        memory = self._freed.pop(fitting[0]) if fitting else torch.empty(buffer.nbytes, dtype=torch.uint8)
        memory.fill_(0)
        moved = buffer.new_empty(0).set_(memory.untyped_storage(), 0, buffer.shape, buffer.stride())
        weakref.finalize(moved, self._free, memory)
        return moved

    def _free(self, memory: Tensor) -> None:
        self._freed.append(memory.fill_(POISON))

    @property
    def is_untouched(self) -> bool:
        return all(bool((memory == POISON).all()) for memory in self._freed)


class Runs:
    """One model; a run is a generation of one stream, or of two in turns, that is forgotten at its end."""

    def __init__(self, backend: TaylorSeerBackend) -> None:
        self.backend, self.compiled = backend, torch.compile(tiny(), backend=backend, dynamic=False)

    def run(self, length: int, seeds: tuple[int, ...]) -> list[Tensor]:
        outputs = []
        for step in range(NUM_STEPS):
            for seed in seeds:
                with self.backend.stream(f"pipeline/{seed}", step=step):
                    outputs.append(self.compiled(**tiny_inputs(step, seed=seed, length=length)))
        self.backend._runtime.forget("pipeline")
        return outputs


def test_a_thousand_runs(monkeypatch):
    """Other sizes now and then, guidance in some runs, and others broken off by ``reset``."""
    memory = PoisonedMemory(BufferLayout.allocate)
    monkeypatch.setattr(BufferLayout, "allocate", lambda layout, args: memory(layout, args))
    config, api = {"order": 1, "interval": 2, "warmup": 1, "compiler": "eager"}, StandIn()
    runs = Runs(TaylorSeerBackend(BackendConfig(**config), api))
    plain = Runs(TaylorSeerBackend(BackendConfig(cuda_graphs=False, **config)))
    kinds = [(length, seeds) for length in (3, 4) for seeds in ((0,), (1,), (0, 1))]
    expected = {kind: plain.run(*kind) for kind in kinds}
    graphs, choice, kind = runs.backend._runtime.cuda_graphs, random.Random(0), kinds[0]
    for number in range(1000):
        if choice.random() < 0.2:
            kind = choice.choice(kinds)
        outputs = runs.run(*kind)
        assert torch.equal(torch.cat(outputs), torch.cat(expected[kind])), number
        assert graphs.num_held == len(api.cuda.alive) <= graphs.limit
        assert memory.is_untouched
        if number % 300 == 299:
            runs.backend.reset()
            assert len(api.cuda.alive) == 0
    stats = runs.backend.stats()
    assert stats.replays > 40 * stats.captures
    assert memory.num_allocated < 1000
