"""CUDA graphs with a stand-in for the graph itself: what is captured when, and that no replay gives another result."""

import gc
import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taylorseer_fx import ConfigError, TaylorSeerBackend, TaylorSeerWarning
from taylorseer_fx.config import BackendConfig
from tests.runtime.graph_stand_in import StandIn
from tests.zoo import Tiny, randomize, tiny, tiny_inputs

NUM_STEPS = 20


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Subject:
    """A model compiled twice, with captures and without."""

    def __init__(self, model: nn.Module | None = None, dynamic: bool = False, **settings: Any) -> None:
        self.model = model if model is not None else tiny()
        self.api = StandIn()
        settings = {"order": 2, "interval": 3, "warmup": 2, "compiler": "eager"} | settings
        self.backend = TaylorSeerBackend(BackendConfig(**settings), self.api)
        self.plain_backend = TaylorSeerBackend(BackendConfig(cuda_graphs=False, **settings))
        self.compiled: Callable[..., Tensor] = torch.compile(self.model, backend=self.backend, dynamic=dynamic)
        self.plain: Callable[..., Tensor] = torch.compile(self.model, backend=self.plain_backend, dynamic=dynamic)

    def step(self, step: int, **inputs: Any) -> Tensor:
        """One step of both; checks that they agree bit for bit."""
        given = tiny_inputs(step, num_steps=NUM_STEPS, **inputs)
        output, expected = self.compiled(**given), self.plain(**given)
        assert torch.equal(output, expected), f"step {step}"
        return output

    def generate(self, num_steps: int = NUM_STEPS, **inputs: Any) -> list[Tensor]:
        return [self.step(step, **inputs) for step in range(num_steps)]

    @property
    def counts(self) -> tuple[int, int]:
        stats = self.backend.stats()
        return stats.captures, stats.replays


class TestReplays:
    @pytest.mark.parametrize(
        ("settings", "num_captures"),
        [
            pytest.param({}, 3 + 1, id="snapshots"),
            pytest.param({"order": 0}, 1 + 1, id="reuse"),
            pytest.param({"buffer_dtype": torch.float8_e5m2}, 1 + 1, id="differences"),
            pytest.param({"granularity": "stack"}, 3 + 1, id="stack"),
            pytest.param({"order": 1, "interval": 5, "full_steps": (0, 1, 4, 5, 11, 20), "warmup": 3}, 2 + 1, id="uneven"),
        ],
    )
    def test_generations(self, settings, num_captures):
        """The first call of each kind warms up; then a capture of the full step for every turn of the buffers, and one that
        forecasts: steps, gaps and orders are data. Outputs are those of the compiled variants, to the bit, and the caller's for
        good.
        """
        subject = Subject(**settings)
        first = subject.generate()
        kept = [output.clone() for output in first]
        assert subject.backend.stats().forecast_calls > 0
        assert subject.counts == (num_captures, NUM_STEPS - 2)
        assert all(torch.equal(a, b) for a, b in zip(subject.generate(), first, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
        assert subject.counts == (num_captures, 2 * NUM_STEPS - 2)

    def test_workflow(self):
        """Warm up, capture and replay, replay; only the first capture of a kind may need more memory."""
        subject = Subject(order=0, interval=2, warmup=1)
        subject.generate(6)
        room = ["synchronize", "empty cache"]
        assert subject.api.steps == [*room, "begin", "end", "replay"] * 2 + ["replay"] * 2

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_two_resolutions(self, dynamic):
        """Each with captures of its own, in turns, also where one graph serves both; sizes are then integer inputs."""
        subject = Subject(dynamic=dynamic)
        for _ in range(2):
            for length in (6, 9):
                subject.generate(8, length=length)
        captures, replays = subject.counts
        assert replays == 4 * 8 - 2 * 2
        assert captures <= 2 * 2 * 3 * 2

    def test_streams(self):
        """Conditional and unconditional calls in turns: one staging memory, captures over each stream's buffers."""
        subject = Subject()
        for _ in range(2):
            for step in range(NUM_STEPS):
                for seed in (0, 1):
                    subject.step(step, seed=seed, prompt=float(seed))
        assert subject.counts == (2 * (3 + 1), 2 * 2 * NUM_STEPS - 2)

    def test_threads(self):
        """Two threads with a stream each: what is staged for one is never replayed by the other."""
        subject, barrier = Subject(), Barrier(2)
        subject.generate(8)  # compiled

        def run(seed: int) -> list[Tensor]:
            barrier.wait()
            outputs = []
            with torch.no_grad():
                for step in range(8):
                    with subject.backend.stream(str(seed), step=step):
                        outputs.append(subject.compiled(**tiny_inputs(step, seed=seed)))
            return outputs

        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(run, (3, 4)))
        for seed, outputs in zip((3, 4), results, strict=True):
            for step, output in enumerate(outputs):
                with subject.plain_backend.stream(str(seed), step=step):
                    assert torch.equal(output, subject.plain(**tiny_inputs(step, seed=seed)))

    def test_inference_mode_and_no_grad(self):
        """A capture made in one serves in the other."""
        subject = Subject(order=0, interval=2, warmup=1)
        for inference in (True, False, True, False):
            with torch.inference_mode(inference):
                subject.generate(6)
        assert subject.counts[0] <= 2 * 2  # Dynamo makes a graph for each

    def test_while_the_caller_captures(self):
        """Its graph is the caller's: the variant runs into it."""
        subject = Subject()
        subject.generate(8)
        before = subject.counts
        subject.api.user_is_capturing = True
        subject.generate()
        assert subject.counts == before


class TestAddresses:
    def test_weights_are_data(self):
        """A LoRA merged in place, a checkpoint loaded into the parameters: no capture is made anew."""
        subject = Subject()
        subject.generate()
        before = subject.counts[0]
        subject.model.load_state_dict(randomize(Tiny(), seed=7).state_dict())
        subject.generate()
        assert subject.counts[0] == before

    @pytest.mark.parametrize("move", ["data", "to"])
    def test_weights_moved(self, move):
        """``.to()`` and offloading give the same parameters other memory, perhaps other values: captured anew, once a turn."""
        subject = Subject()
        subject.generate()
        before = subject.counts[0]
        keep = [parameter.data for parameter in subject.model.parameters()]
        if move == "data":
            for parameter in subject.model.parameters():
                parameter.data = parameter.data * 1.25
        else:
            subject.model.to(torch.float64).to(torch.float32)
        outputs = subject.generate()
        subject.generate()
        assert subject.counts[0] == 2 * before
        assert keep
        assert not torch.isnan(torch.stack(outputs)).any()

    def test_one_weight_moved(self):
        """Every address is compared, not just the first and the last."""
        subject = Subject()
        subject.generate()
        before = subject.counts[0]
        weight = subject.model.mlp[0].weight
        old, weight.data = weight.data, weight.data + 0.5
        subject.generate()
        assert subject.counts[0] > before
        assert old.shape == weight.shape

    def test_weights_that_move_at_every_call(self):
        """As with offload of a layer at a time: after eight captures never used again, it runs as compiled and says so."""
        subject, old = Subject(order=0, interval=2, warmup=1), list[Tensor]()

        def generate_twice() -> None:
            for step in (*range(NUM_STEPS), *range(NUM_STEPS)):
                for parameter in subject.model.parameters():
                    old.append(parameter.data)
                    parameter.data = parameter.data.clone()
                subject.step(step)

        with pytest.warns(TaylorSeerWarning, match=r"the (full|forecast) step runs as compiled.*at other addresses") as caught:
            generate_twice()
        assert len(caught) == 2
        assert subject.counts == (2 * 8, 2 * 8)
        assert "other addresses" in str(subject.backend.explain())

    def test_captures_keep_no_buffers(self):
        """They are addresses; what keeps buffers from one run to the next is the runtime, and nothing else."""
        subject = Subject()
        with subject.backend.stream("a"):
            [subject.compiled(**tiny_inputs(step)) for step in range(8)]
        runtime = subject.backend._runtime
        references = [weakref.ref(b) for state in runtime.states.values() for b in state.buffers]
        runtime.forget("a")
        runtime.spare.clear()
        gc.collect()
        assert references
        assert not any(reference() is not None for reference in references)
        for name in "bcd":
            for step in range(8):
                with subject.backend.stream(name), subject.plain_backend.stream(name):
                    subject.step(step)
            runtime.forget(name)

    def test_reset_frees_everything(self):
        subject = Subject()
        subject.generate()
        assert len(subject.api.cuda.alive) == 3 + 1
        subject.backend.reset()
        gc.collect()
        assert len(subject.api.cuda.alive) == 0
        subject.plain_backend.reset()
        subject.generate()

    def test_captures_are_bounded(self):
        """Streams that come and go leave no more behind than twice what the most of them at once need."""
        subject = Subject(order=0, interval=2, warmup=1)
        for number in range(30):
            with subject.backend.stream(f"request-{number}"), subject.plain_backend.stream(f"request-{number}"):
                subject.generate(4)
            subject.backend._runtime.forget(f"request-{number}")
            subject.backend._runtime.spare.clear()  # so that the next one allocates
        graphs = subject.backend._runtime.cuda_graphs
        assert graphs.num_held == len(subject.api.cuda.alive) <= graphs.limit == 32


class TestFallback:
    @pytest.mark.parametrize(("refused", "kinds"), [("aten::copy_", ("full",)), ("aten::sin", ("full", "forecast"))])
    def test_a_capture_that_fails(self, refused, kinds):
        """The variant runs as compiled, buffers are written once, the other kind is captured; the reason is said once."""
        subject = Subject()
        subject.api.cuda.refuses = refused
        with pytest.warns(TaylorSeerWarning) as caught:
            subject.generate()
        subject.generate()
        messages = [str(entry.message) for entry in caught]
        assert len(messages) == len(kinds)
        for kind, message in zip(kinds, messages, strict=True):
            name = refused.removeprefix("aten::")
            wanted = rf"the {kind} step runs as compiled.*{name}.*RuntimeError: CUDA error: operation not permitted when stream"
            assert re.search(wanted, message)
            assert "more of it" not in message
        assert subject.counts[0] == (0 if "forecast" in kinds else 1)
        assert f"as compiled, since `{refused.removeprefix('aten::')}" in str(subject.backend.explain())

    def test_out_of_memory(self, monkeypatch):
        subject = Subject()

        def capture(*_: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        monkeypatch.setattr(subject.api, "capture", capture)
        with pytest.warns(TaylorSeerWarning, match="OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"):
            subject.generate()
        assert subject.counts == (0, 0)

    def test_interrupted(self, monkeypatch):
        """Not a reason to fall back; the next generation captures."""
        subject = Subject()
        subject.generate(3)
        with monkeypatch.context() as patch:
            patch.setattr(subject.api, "capture", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                subject.compiled(**tiny_inputs(3, num_steps=NUM_STEPS))
        subject.plain_backend.reset()
        subject.backend.reset()
        subject.generate()
        assert subject.counts[0] >= 3 + 1

    def test_a_model_that_writes_into_its_input(self):
        """A write into staging memory would be lost, so that is not captured."""

        class Writes(Tiny):
            def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
                x.mul_(1.5)
                return super().forward(x, timestep)

        subject = Subject(randomize(Writes()))
        xs = [tiny_inputs(step)["x"] for step in (0, 0, 1)]
        with pytest.warns(TaylorSeerWarning, match=r"aten\.copy_\.default writes into input"):
            outputs = [run(x, tiny_inputs(0)["timestep"]) for run, x in zip((subject.plain, subject.compiled), xs, strict=False)]
        assert torch.equal(*outputs)
        assert torch.equal(*xs[:2])
        assert not torch.equal(xs[0], tiny_inputs(0)["x"])


class TestSettings:
    def test_true_without_a_gpu(self):
        """An error that names the argument and the device."""
        backend = TaylorSeerBackend(BackendConfig(compiler="eager", cuda_graphs=True))
        with pytest.raises(ConfigError) as raised:
            torch.compile(tiny(), backend=backend)(**tiny_inputs(0))
        assert str(raised.value).startswith("cuda_graphs must be None or False for a model on cpu, got True")

    @pytest.mark.parametrize(
        ("value", "text"), [(None, "off: the model is on no CUDA device"), (False, "off: cuda_graphs=False")]
    )
    def test_off(self, value, text):
        """On a CPU, and on demand: nothing is captured, and nothing said of it."""
        backend = TaylorSeerBackend(BackendConfig(compiler="eager", cuda_graphs=value))
        compiled = torch.compile(tiny(), backend=backend)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for step in range(8):
                compiled(**tiny_inputs(step))
        assert (backend.stats().captures, backend.stats().replays) == (0, 0)
        assert f"CUDA graphs:   {text}" in str(backend.explain())

    def test_true(self):
        """As None, where the model is on a device of that kind."""
        backend = TaylorSeerBackend(BackendConfig(compiler="eager", cuda_graphs=True, interval=3), StandIn())
        compiled = torch.compile(tiny(), backend=backend)
        for step in range(12):
            compiled(**tiny_inputs(step))
        assert backend.stats().captures == 2 + 1

    def test_explain(self):
        subject = Subject()
        subject.generate()
        assert subject.backend.explain().cuda_graphs == ("the full step: 3 captures", "the forecast step: 1 capture")
