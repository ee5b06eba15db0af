"""What the derivative buffers cost, that they are freed, and that a step allocates little beside them."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from taylorseer_fx import plan, taylorseer_backend
from taylorseer_fx.bench.observing import with_peak_bytes
from taylorseer_fx.runtime.buffers import BufferLayout
from tests.zoo import MODELS, dit, tiny, tiny_inputs


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


IMAGE_NUMEL = 2 * 16 * 16  # batch, tokens and width of the image, in every model of the zoo


@pytest.mark.parametrize(
    ("name", "settings", "num_features", "bytes_an_element"),
    [
        ("dit", {"order": 0}, 4, 4),
        ("dit", {"order": 3, "granularity": "stack"}, 1, 16),
        ("flux", {"order": 1}, 6, 8),
        ("flux", {"order": 2, "buffer_dtype": torch.float8_e5m2}, 6, 4 + 1 + 1),
        ("flux", {"order": 2, "buffer_dtype": torch.float8_e4m3fn, "granularity": "stack"}, 1, 4 + 1 + 1),
        ("sd3", {"order": 2, "buffer_dtype": torch.bfloat16}, 6, 6),
        ("pixart", {"order": 2}, 6, 12),
    ],
)
def test_buffer_bytes(name, settings, num_features, bytes_an_element):
    """Planned, reported, allocated and counted by hand agree: ``order + 1`` buffers of every feature for every stream. Of the
    text, in FLUX and SD3, no forecast step reads anything, so nothing is kept.
    """
    zoo = MODELS[name]()
    backend = taylorseer_backend(interval=3, warmup=1, compiler="eager", **settings)
    compiled = torch.compile(zoo.model, backend=backend)
    for step in range(5):
        compiled(**zoo.inputs(step))
    expected = num_features * IMAGE_NUMEL * bytes_an_element
    stats = backend.stats()
    assert stats.buffer_bytes == stats.peak_buffer_bytes == backend.explain().buffer_bytes == expected
    with backend.stream("second"):
        compiled(**zoo.inputs(0))
    assert backend.stats().buffer_bytes == backend.stats().peak_buffer_bytes == 2 * expected
    backend.reset()
    assert (backend.stats().buffer_bytes, backend.stats().peak_buffer_bytes) == (0, 2 * expected)
    assert name != "dit" or plan(zoo.model, zoo.inputs(0), **settings).buffer_bytes == expected


class RecordedBuffers:
    """Stands before ``BufferLayout.allocate`` and keeps weak references to the buffers, and how many were alive at each call."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.references: list[weakref.ref[Tensor]] = []
        self.alive_before: list[int] = []

    def __get__(self, layout: BufferLayout, owner: type) -> Any:
        def allocate(*args: Any) -> list[Tensor]:
            self.alive_before.append(self.num_alive)
            buffers = self.original(layout, *args)
            self.references += map(weakref.ref, buffers)
            return buffers

        return allocate

    @property
    def num_alive(self) -> int:
        return sum(reference() is not None for reference in self.references)


@pytest.fixture
def recorded(monkeypatch) -> RecordedBuffers:
    recorded = RecordedBuffers(BufferLayout.allocate)
    monkeypatch.setattr(BufferLayout, "allocate", recorded)
    return recorded


def test_reset_frees(recorded):
    """After ``reset()`` nothing is counted, and the buffers themselves are gone."""
    backend = taylorseer_backend(order=2, compiler="eager")
    compiled = torch.compile(tiny(), backend=backend)
    for name in ("a", "b"):
        for step in range(8):
            with backend.stream(name):
                compiled(**tiny_inputs(step))
    gc.collect()
    assert recorded.num_alive == len(recorded.references) == 2 * 2 * 3
    backend.reset()
    gc.collect()
    assert recorded.num_alive == 0
    assert backend.stats().buffer_bytes == 0


@pytest.mark.parametrize("dynamic", [True, False])
def test_one_generation_at_a_time(recorded, dynamic):
    """Where the resolution changes, the buffers of the last generation are gone before there are any of the next one, whether one
    graph serves both or each has its own.
    """
    backend = taylorseer_backend(order=2, compiler="eager")
    compiled = torch.compile(tiny(), backend=backend, dynamic=dynamic)
    for length in (6, 12, 9, 6):
        for step in range(8):
            compiled(**tiny_inputs(step, length=length))
        assert recorded.num_alive == 2 * 3
        assert backend.stats().buffer_bytes == 2 * 3 * 2 * length * 32 * 4
    assert recorded.alive_before == [0, 0, 0, 0]
    assert backend.stats().peak_buffer_bytes == 2 * 3 * 2 * 12 * 32 * 4


def test_generations_share_buffers(recorded):
    """Buffers are allocated in a stream's first step, then never again: not on later steps, nor in later generations."""
    compiled = torch.compile(tiny(), backend=taylorseer_backend(order=2, compiler="eager"))
    for _ in range(3):
        for step in range(10):
            compiled(**tiny_inputs(step))
            assert len(recorded.alive_before) == 1


@pytest.mark.inductor
def test_forecast_step_peak():
    """Beside buffers and output, a forecast step holds at most two hidden states, at order 4; a full step several times that.

    Two, because the residual stream and one copy of it (normed, or projected) may have to exist at once in the last layer; all
    else, the conditioning of the blocks and the latents, is small with 256 tokens, and has room as long as only one hidden
    state is alive, which is what was measured. The polynomials take none of it: an unfused one would hold the stream, its sum
    so far and a term, three at once.
    """
    zoo = dit(head_dim=32, size=32)
    backend = taylorseer_backend(order=4, interval=2, warmup=1)
    compiled = torch.compile(zoo.model, backend=backend)
    for step in range(5):
        compiled(**zoo.inputs(step))
    steps = [zoo.inputs(5), zoo.inputs(6)]
    forecast, full = (with_peak_bytes(lambda inputs=inputs: compiled(**inputs))[1] for inputs in steps)
    assert (backend.stats().full_calls, backend.stats().forecast_calls) == (4, 3)
    hidden_bytes = 2 * 256 * 64 * 4
    output_bytes = compiled(**zoo.inputs(7))[0].nbytes
    assert 0 < forecast <= 2 * hidden_bytes + output_bytes
    assert forecast < full / 2
