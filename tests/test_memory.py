"""What the derivative buffers cost, that they are freed, and that a step allocates little beside them."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from taylorseer_fx import plan, taylorseer_backend
from taylorseer_fx.bench.observing import with_peak_bytes
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.passes.flops import count_flops
from taylorseer_fx.passes.runner import count_ops
from taylorseer_fx.planning import plan_each
from taylorseer_fx.runtime.buffers import BufferLayout
from tests.composition.session import short_flux
from tests.turns import in_turns
from tests.zoo import MODELS, dit, tiny, tiny_inputs

pytestmark = pytest.mark.usefixtures("little_garbage")


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


IMAGE_NUMEL = 2 * 16 * 16  # batch, tokens and width of the image, in every model of the zoo


@pytest.mark.parametrize(
    ("name", "settings", "num_features", "bytes_an_element"),
    in_turns(
        [
            ("dit", {"order": 0}, 4, 4),
            ("dit", {"order": 3, "granularity": "stack"}, 1, 16),
            ("short flux", {"order": 1}, 3, 8),
            ("short flux", {"order": 2, "buffer_dtype": torch.float8_e5m2}, 3, 4 + 1 + 1),
            ("short flux", {"order": 2, "buffer_dtype": torch.float8_e4m3fn, "granularity": "stack"}, 1, 4 + 1 + 1),
            ("sd3", {"order": 2, "buffer_dtype": torch.bfloat16}, 6, 6),
            ("pixart", {"order": 2}, 6, 12),
        ],
        weeks=4,
    ),
)
def test_buffer_bytes(name, settings, num_features, bytes_an_element):
    """Planned, reported, allocated and counted by hand agree: ``order + 1`` buffers of every feature for every stream. Of the
    text, in FLUX and SD3, no forecast step reads anything, so nothing is kept.
    """
    zoo = (MODELS | {"short flux": short_flux})[name]()
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
@pytest.mark.turn(2, 4)
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


def live_nodes() -> list[fx.Node]:
    """Of all graphs, after all garbage is collected."""
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, fx.Node)]


def test_plans_keep_numbers():
    """However many settings are planned for, no graph stays alive; one is made again when it is asked for."""
    zoo, before = dit(), len(live_nodes())
    settings = [BackendConfig(order=2), BackendConfig(order=1, granularity="stack")]
    plans = plan_each(zoo.model, zoo.inputs(0), settings)
    torch._dynamo.reset()  # until then it keeps its own graph of the model
    assert len(live_nodes()) == before
    flops = [count_flops(made.reports[0].graph("forecast").graph) for made in plans]
    assert flops == [made.flops_forecast for made in plans]
    assert len(live_nodes()) == before


@pytest.mark.parametrize("granularity", ["module", "stack"])
def test_a_backend_keeps_what_it_runs(granularity):
    """Uncompiled, the graph of each step kind is what runs; no other stays, before ``explain()`` or after it."""
    before = set(live_nodes())
    backend = taylorseer_backend(compiler="eager", granularity=granularity)
    compiled = torch.compile(tiny(), backend=backend)
    compiled(**tiny_inputs(0))

    def num_graphs() -> int:
        return len({node.graph for node in live_nodes() if node not in before})

    of_dynamo_and_of_each_step = 3
    assert num_graphs() == of_dynamo_and_of_each_step
    report = backend.explain()
    assert {name: count_ops(report.graph(name).graph) for name in report.num_ops} == report.num_ops
    assert num_graphs() == of_dynamo_and_of_each_step
    torch._dynamo.reset()
    assert num_graphs() == 0
    assert backend.explain().flops == report.flops


@pytest.mark.inductor
def test_a_compiled_backend_keeps_no_graph():
    """Inductor works in the graphs it is given; what ``explain()`` shows is made anew, and is not kept either."""
    before = len(live_nodes())
    backend = taylorseer_backend()
    compiled = torch.compile(tiny(), backend=backend)
    compiled(**tiny_inputs(0))
    report = backend.explain()
    assert count_ops(report.graph("full").graph) == report.num_ops["full"]
    torch._dynamo.reset()
    of_inductor = 3  # an identity that a module of its keeps
    assert len(live_nodes()) <= before + of_inductor
