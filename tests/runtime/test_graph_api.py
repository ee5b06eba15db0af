"""The calls that torch.cuda is given, in their order, with a stand-in for the module; on a GPU, tests/gpu runs the real ones."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from taylorseer_fx.runtime import graph_api
from taylorseer_fx.runtime.graph_api import CudaGraphApi

DEVICE = torch.device("cuda", 0)


class FakeStream:
    def __init__(self, cuda: "FakeCuda", name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: "FakeStream") -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    cuda: "FakeCuda"

    def capture_begin(self, pool: int, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self.cuda.log.append(f"begin in pool {pool} on {self.cuda.current.name}")

    def capture_end(self) -> None:
        self.cuda.log.append("end")
        if self.cuda.is_invalid:
            raise RuntimeError("operation failed due to a previous error during capture")


class FakeCuda:
    """As much of ``torch.cuda`` as is used."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.is_invalid = False
        self.num_pools = 0
        self.main = self.current = FakeStream(self, "main")
        self.CUDAGraph = type("Graph", (FakeGraph,), {"cuda": self})

    def Stream(self, device: Any) -> FakeStream:  # noqa: N802
        return FakeStream(self, "side")

    def graph_pool_handle(self) -> int:
        self.num_pools += 1
        return self.num_pools

    @contextmanager
    def stream(self, stream: FakeStream) -> Any:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def device(self, device: Any) -> Any:
        yield

    def current_stream(self, device: Any = None) -> FakeStream:
        return self.current

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def empty_cache(self) -> None:
        self.log.append("empty cache")


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(graph_api, "cuda", fake)
    ended = SimpleNamespace(_cuda_endAllocateToPool=lambda index, pool: fake.log.append(f"allocator ends pool {pool}"))
    monkeypatch.setattr(graph_api.torch, "_C", ended)
    return fake


def fail() -> None:
    raise ValueError("unsupported")


def test_warm_up(cuda):
    """On the side stream, after what was enqueued before and before what comes."""
    assert CudaGraphApi().warm_up(DEVICE, lambda: cuda.current.name) == "side"
    assert cuda.log == ["side waits for main", "main waits for side"]


def test_warm_up_that_fails(cuda):
    with pytest.raises(ValueError, match="unsupported"):
        CudaGraphApi().warm_up(DEVICE, fail)
    assert cuda.log == ["side waits for main", "main waits for side"]
    assert cuda.current is cuda.main


def test_capture(cuda):
    """One pool for all; unused memory is handed back where the pool may grow."""
    api = CudaGraphApi()
    first, name = api.capture(DEVICE, lambda: cuda.current.name, make_room=True)
    second, _ = api.capture(DEVICE, lambda: None, make_room=False)
    assert name == "side"
    pool = cuda.log[3]
    assert pool.startswith("begin in pool")
    captured = ["side waits for main", pool, "end", "main waits for side"]
    assert cuda.log == ["synchronize", "empty cache", *captured, *captured]
    assert first is not second


def test_a_pool_without_graphs_is_not_used_again(cuda):
    """Torch frees its memory and forgets it when the last graph goes."""
    api = CudaGraphApi()
    pools = []
    for _ in range(2):
        graph, _ = api.capture(DEVICE, lambda: None, make_room=False)
        pools.append(cuda.log[-3])
        del graph
    assert pools[0] != pools[1]


def test_an_error_in_a_capture(cuda):
    """It is ended, the current stream is what it was, and the pool serves on."""
    api = CudaGraphApi()
    kept, _ = api.capture(DEVICE, lambda: None, make_room=False)
    begin = cuda.log[1]
    with pytest.raises(ValueError, match="unsupported"):
        api.capture(DEVICE, fail, make_room=False)
    assert cuda.log[-2:] == [begin, "end"]
    assert cuda.current is cuda.main
    api.capture(DEVICE, lambda: None, make_room=False)
    assert cuda.log[-3] == begin
    assert kept is not None


def test_an_invalid_capture(cuda):
    """Ending it fails too. The first error is what is raised; the allocator leaves the pool, and captures go to another."""
    api = CudaGraphApi()
    kept, _ = api.capture(DEVICE, lambda: None, make_room=False)
    begin = cuda.log[1]
    cuda.is_invalid = True
    with pytest.raises(ValueError, match="unsupported"):
        api.capture(DEVICE, fail, make_room=False)
    assert cuda.log[-3:] == [begin, "end", f"allocator ends pool {begin.split()[3]}"]
    assert cuda.current is cuda.main
    cuda.is_invalid = False
    api.capture(DEVICE, lambda: None, make_room=False)
    assert cuda.log[-3] != begin
    assert kept is not None


def test_streams_take_turns(cuda):
    """Replays share a pool, so one on another stream comes after those before it; on the same stream nothing is enqueued."""
    api = CudaGraphApi()
    other = FakeStream(cuda, "other")
    for stream in (cuda.main, cuda.main, other, other, cuda.main):
        cuda.current = stream
        api.follow(DEVICE)
    assert cuda.log == ["other waits for main", "main waits for other"]
