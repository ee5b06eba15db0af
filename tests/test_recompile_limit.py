"""Dynamo gives up on a function after so many compilations, and runs it eagerly; the last one that it allows is told."""

import warnings
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, SchedulerMixin
from torch import Tensor, nn

from taylorseer_fx import TaylorSeerWarning, taylorseer_backend


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


@pytest.fixture(autouse=True)
def limit_of_three() -> Iterator[None]:
    with torch._dynamo.config.patch(recompile_limit=3), torch.no_grad():
        yield


def said(sizes: list[int], dynamic: bool | None) -> tuple[list[str], int]:
    """What is said while a model is called with so many rows each time, and how many calls came by the backend."""
    backend = taylorseer_backend(compiler="eager")
    compiled = torch.compile(Layer(), backend=backend, dynamic=dynamic)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TaylorSeerWarning)
        for size in sizes:
            with backend.stream(str(size)):
                compiled(torch.ones(size, 8))
    calls = backend.stats()
    return [str(entry.message) for entry in caught], calls.full_calls + calls.forecast_calls


def test_the_last_compilation_is_told():
    """Once, before anything ran eagerly; the fourth size does, and is not heard of."""
    texts, num_calls = said([3, 4, 5, 6], dynamic=False)
    (text,) = texts
    assert "Dynamo now keeps 3 compilations of a function of the model, which is its limit" in text
    assert "torch.compile(dynamic=True)" in text
    assert num_calls == 3


@pytest.mark.parametrize(("sizes", "dynamic"), [([3, 4], False), ([3, 4, 5, 6], True)], ids=["below-the-limit", "as-advised"])
def test_otherwise_nothing_is_said(sizes, dynamic):
    assert said(sizes, dynamic) == ([], len(sizes))


def test_other_backends_on_the_same_class_count():
    """As in a notebook that tries settings: the limit is of the function, so the fourth model would run eagerly."""
    said_by_each = [said([3], dynamic=False) for _ in range(4)]
    assert [len(texts) for texts, _ in said_by_each] == [0, 0, 1, 0]
    assert [num_calls for _, num_calls in said_by_each] == [1, 1, 1, 0]
    assert "torch._dynamo.reset()" in said_by_each[2][0][0]


class Denoiser(nn.Module):
    """Compiled once for each ``mode``, which changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, x: Tensor, timestep: Tensor, mode: int) -> Tensor:
        for layer in self.layers:
            x = layer(x * (1 + timestep / 10_000) + 0 * mode)
        return x


class Pipeline(DiffusionPipeline):
    def __init__(self, transformer: nn.Module, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def __call__(self, modes: list[int]) -> list[Tensor]:
        """The outputs of a run with a mode for each step."""
        outputs = []
        self.scheduler.set_timesteps(len(modes))
        for mode, t in zip(modes, self.progress_bar(self.scheduler.timesteps), strict=True):
            x = torch.ones(2, 8) + len(outputs) ** 2 / 100
            outputs.append(self.transformer(x, t.float(), mode).clone())
            self.scheduler.step(x, t, x)
        return outputs


@pytest.mark.parametrize("eager", [{3}, {4}, {5, 6}, {3, 4, 5, 8}], ids=str)
def test_a_pipelines_steps_that_run_eagerly_count(eager):
    """Three modes are compiled; steps with a fourth run eagerly. Those after them are as if all had been seen; where a full step
    was among them, the next is executed in its place.
    """
    backend = taylorseer_backend(order=1, interval=3, compiler="eager")
    torch.manual_seed(0)
    model = Denoiser()
    pipe = Pipeline(torch.compile(model, backend=backend, dynamic=False), DDIMScheduler())
    backend.attach(pipe)
    with pytest.warns(TaylorSeerWarning, match="its limit"):
        *_, expected = [pipe([mode] * 10) for mode in (1, 2, 0)]
    in_full = Pipeline(model, DDIMScheduler())([0] * 10)
    with pytest.warns(TaylorSeerWarning, match="no call of the model at the step before was seen"):
        found = pipe([3 if step in eager else 0 for step in range(10)])
    seen = [step for step in range(10) if step not in eager]
    due = [now for last, now in pairwise([-1, *seen]) if any(last < full <= now for full in (0, 1, 2, 5, 8))]
    assert all(torch.equal(found[step], in_full[step]) for step in {*eager, *due})
    if 5 not in eager:
        assert all(torch.equal(found[step], expected[step]) for step in seen)
    assert not any(torch.equal(found[step], in_full[step]) for step in set(seen) - set(due))
