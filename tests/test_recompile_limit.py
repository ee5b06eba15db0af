"""Dynamo gives up on a function after so many compilations, and runs it eagerly; the last one that it allows is told."""

import warnings
from collections.abc import Iterator

import pytest
import torch
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
