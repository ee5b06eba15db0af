"""What ``CudaGraphApi`` asks of torch.cuda, with a stand-in for that; on a GPU, tests/gpu has the real one."""

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from taylorseer_fx.runtime import graph_api
from tests.runtime.graph_stand_in import FakeStream, StandIn

CPU = torch.device("cpu")


@pytest.fixture
def api() -> StandIn:
    return StandIn()


def fail() -> None:
    raise ValueError("unsupported")


def capture(api: StandIn, run: Any = lambda: None) -> Any:
    """The graph and what ``run`` returned; with room made it is the same."""
    return api.capture(CPU, run, make_room=False)


def begun(api: StandIn) -> list[str]:
    return [entry for entry in api.cuda.log if entry.startswith("begin")]


class TestCapture:
    def test_calls(self, api):
        """On a CUDA stream of its own, in order with the current one; one pool for all; room is made where that may grow."""
        first, name = api.capture(CPU, lambda: api.cuda.current.name, make_room=True)
        second, _ = capture(api)
        assert name == "side 1"
        captured = ["side 1 waits for main", "begin in pool 1 on side 1", "end", "main waits for side 1"]
        assert api.cuda.log == ["synchronize", "empty cache", *captured, *captured]
        assert first is not second

    def test_a_pool_without_graphs_is_not_used_again(self, api):
        """Torch frees its memory and forgets it when the last graph goes. The CUDA stream is not used again either."""
        for _ in range(2):
            graph, _ = capture(api)
            del graph
        assert begun(api) == ["begin in pool 1 on side 1", "begin in pool 2 on side 2"]

    @pytest.mark.parametrize("enabled", [True, False])
    def test_no_garbage_is_collected(self, api, enabled):
        """What would be collected might call CUDA; afterwards all is as before, also after an error."""
        was = gc.isenabled()
        (gc.enable if enabled else gc.disable)()
        try:
            assert capture(api, gc.isenabled)[1] is False
            assert gc.isenabled() is enabled
            with pytest.raises(ValueError, match="unsupported"):
                capture(api, fail)
            assert gc.isenabled() is enabled
        finally:
            (gc.enable if was else gc.disable)()


class TestFailures:
    def test_an_error(self, api):
        """The capture is ended, the current stream is what it was, and the pool serves on."""
        kept, _ = capture(api)
        with pytest.raises(ValueError, match="unsupported"):
            capture(api, fail)
        assert api.cuda.current is api.cuda.main
        capture(api)
        assert set(begun(api)) == {"begin in pool 1 on side 1"}
        assert kept is not None

    @pytest.mark.parametrize("has_others", [True, False])
    def test_an_invalid_capture(self, api, has_others):
        """Ending it fails too. The first error is what is raised, the allocator leaves the pool, which no failed graph holds, and
        the default generator can be used.
        """
        kept = capture(api) if has_others else None
        with pytest.raises(RuntimeError, match="operation not permitted when stream is capturing"):
            capture(api, lambda: torch.ones(1).item())
        assert api.cuda.current is api.cuda.main
        assert api.cuda.allocating == []
        assert sum(api.cuda.users.values()) == (1 if has_others else 0)
        api.cuda.draw()
        capture(api)
        assert kept or not has_others

    def test_nothing_can_be_captured(self, api, monkeypatch):
        """Not even what would put the generator right: the first error is raised all the same."""
        monkeypatch.setattr(api.cuda, "end", lambda graph: (_ for _ in ()).throw(RuntimeError("device lost")))
        monkeypatch.setattr(api.cuda, "begin", lambda graph: None)
        with pytest.raises(ValueError, match="unsupported"):
            capture(api, fail)


class TestScratchMemory:
    """Of a library, for each CUDA stream: captures note its address."""

    X = torch.ones(2)

    def capture_product(self, api: StandIn) -> Any:
        return capture(api, lambda: api.cuda.product(self.X, self.X))[0]

    def test_one_capture_goes(self, api):
        """Torch frees the scratch memory of its CUDA stream: the others have theirs in the pool, which stays."""
        api.cuda.product(self.X, self.X)
        graphs = [self.capture_product(api) for _ in range(3)]
        graphs.pop()
        gc.collect()
        graphs.append(self.capture_product(api))
        for graph in graphs:
            graph.replay()

    def test_freed_by_somebody_else(self, api):
        api.cuda.product(self.X, self.X)
        graphs = [self.capture_product(api)]
        api.cuda.clear_scratch()
        graphs.append(self.capture_product(api))
        for graph in graphs:
            graph.replay()

    def test_left_over_from_an_earlier_pool(self, api, monkeypatch):
        """Torch before 2.12 leaves scratch memory behind in a pool that is gone; captures in the next pool do not find it."""
        monkeypatch.setattr(api.cuda, "drops_scratch", False)
        api.cuda.product(self.X, self.X)
        for _ in range(3):
            graph = self.capture_product(api)
            graph.replay()
            del graph


def test_streams_take_turns(api):
    """Replays share a pool, so one on another stream comes after those before it; on the same stream nothing is enqueued."""
    other = FakeStream(api.cuda, "other")
    for stream in (api.cuda.main, api.cuda.main, other, other, api.cuda.main):
        api.cuda.current = stream
        api.follow(CPU)
    assert api.cuda.log == ["other waits for main", "main waits for other"]


def test_finish(api):
    """The last to replay came after all others, so it alone is waited for."""
    api.finish(CPU)
    assert api.cuda.log == []
    api.follow(CPU)
    api.finish(CPU)
    assert api.cuda.log == ["wait for main"]


def test_keep_until_done(monkeypatch):
    """The allocator hears of the current CUDA stream of each tensor's device."""
    told: list[Any] = []
    tensors = [SimpleNamespace(device=name, record_stream=told.append) for name in ("cuda:0", "cuda:1")]
    monkeypatch.setattr(graph_api, "cuda", SimpleNamespace(current_stream=lambda device: f"the stream of {device}"))
    graph_api.keep_until_done(tensors)
    assert told == ["the stream of cuda:0", "the stream of cuda:1"]


def test_is_capturing_asks_the_device_of_the_model(monkeypatch):
    """A model on cuda:1 may be called while cuda:0 is the current device, and the other way round."""
    devices = [torch.device("cuda", 0)]

    class Device:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            devices.append(self.device)

        def __exit__(self, *_: object) -> None:
            devices.pop()

    fake = SimpleNamespace(device=Device, is_current_stream_capturing=lambda: devices[-1].index == 1)
    monkeypatch.setattr(graph_api, "cuda", fake)
    assert [graph_api.is_capturing(torch.device("cuda", index)) for index in (0, 1)] == [False, True]
    assert not graph_api.is_capturing(CPU)
