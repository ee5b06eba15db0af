"""A call on a GPU once all is captured, on the side of the host: no wait, and no allocation but for copies of the outputs."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from taylorseer_fx import TaylorSeerBackend
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.runtime.dispatch import Dispatcher
from tests.runtime.graph_stand_in import WAITS, StandIn, storage_address, tensors_in
from tests.zoo import tiny, tiny_inputs

NUM_STEPS = 14


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class HostWork(TorchDispatchMode):
    """What the host asks for outside of replays: fresh memory, by operator, and values that it waits for."""

    def __init__(self, api: StandIn) -> None:
        super().__init__()
        self.api = api
        self.allocations: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage_address(value) for value in tensors_in((args, kwargs))}
        result = function(*args, **kwargs or {})
        if not self.api.cuda.is_replaying:
            made = [value for value in tensors_in(result) if storage_address(value) not in given and value.numel()]
            self.allocations += [function._schema.name for _ in made]
            self.waits += [function._schema.name] if function._schema.name in WAITS else []
        return result


READS = ("tolist", "cpu", "numpy", "__bool__", "__int__", "__float__")  # no operators, or none on a CPU


class Subject:
    """A model whose dispatcher is watched: what Dynamo does before it gets there is the same without us."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        settings = {"order": 2, "interval": 3, "warmup": 2, "compiler": "eager"} | settings
        self.api = StandIn()
        self.backend = TaylorSeerBackend(BackendConfig(**settings), self.api)
        self.model: Callable[..., Tensor] = torch.compile(tiny(), backend=self.backend)
        self.works: list[HostWork] = []
        monkeypatch.setattr(Dispatcher, "__call__", self._watched(Dispatcher.__call__))
        for name in READS:
            monkeypatch.setattr(Tensor, name, self._noted(name, getattr(Tensor, name)))

    def call(self, inputs: dict[str, Any]) -> HostWork:
        """One call; what the host did in it."""
        self.model(**inputs)
        return self.works.pop()

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(dispatcher: Dispatcher, args: list[Any]) -> Any:
            self.works.append(HostWork(self.api))
            with self.works[-1]:
                return call(dispatcher, args)

        return watched

    def _noted(self, name: str, read: Callable[..., Any]) -> Callable[..., Any]:
        def noted(value: Tensor, *args: Any) -> Any:
            for work in self.works:
                work.waits.append(name)
            return read(value, *args)

        return noted


def told_by_step(subject: Subject, inputs: list[dict[str, Any]]) -> Iterator[HostWork]:
    for step, given in enumerate(inputs):
        with subject.backend.stream("a", step=step):
            yield subject.call(given)


class Pipeline:
    """As much of one as is attached to: its bar, its scheduler."""

    def __init__(self, model: Any) -> None:
        self.components, self.scheduler = {"model": model}, FlowMatchEulerDiscreteScheduler()

    def progress_bar(self, total: int) -> "Bar":
        return Bar()


class Bar:
    iterable = None

    def close(self) -> None:
        pass


def told_by_scheduler(subject: Subject, inputs: list[dict[str, Any]]) -> Iterator[HostWork]:
    pipe = subject.__dict__.setdefault("pipe", Pipeline(subject.model))
    subject.backend.attach(pipe)
    pipe.scheduler.set_timesteps(len(inputs))
    bar = pipe.progress_bar(total=len(inputs))
    for given, timestep in zip(inputs, pipe.scheduler.timesteps, strict=True):
        yield subject.call(given | {"timestep": timestep.expand(2)})
        pipe.scheduler.step(torch.zeros(1), timestep, torch.zeros(1))
    bar.close()


@pytest.mark.parametrize("told", [told_by_step, told_by_scheduler])
@pytest.mark.parametrize("settings", [{}, {"buffer_dtype": torch.float8_e5m2}, {"granularity": "stack"}], ids=str)
def test_neither_waits_nor_allocates(monkeypatch, told, settings):
    """From the third run on. The first reads timesteps and runs as compiled, the second may make a capture yet."""
    subject = Subject(monkeypatch, **settings)
    inputs = [tiny_inputs(step, num_steps=NUM_STEPS) for step in range(NUM_STEPS)]
    for _ in range(2):
        list(told(subject, inputs))
    before = subject.backend.stats()
    works = list(told(subject, inputs))
    after = subject.backend.stats()
    assert (after.captures, after.replays - before.replays) == (before.captures, NUM_STEPS)
    assert after.forecast_calls - before.forecast_calls > NUM_STEPS / 2
    for step, work in enumerate(works):
        assert work.waits == []
        assert work.allocations == ["aten::clone"], step


def test_it_shows(monkeypatch):
    """Where nothing tells the step, a timestep is read in every call."""
    subject = Subject(monkeypatch)
    works = [subject.call(tiny_inputs(step, num_steps=NUM_STEPS)) for step in range(NUM_STEPS)]
    assert all("tolist" in work.waits for work in works)
