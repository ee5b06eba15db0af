"""One variant under captures, written by hand: what is part of the key, and what is looked at while debugging."""

import gc
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from taylorseer_fx.runtime.cuda_graphs import MIN_LIMIT, CapturedVariant, CapturePlan, CudaGraphs
from tests.runtime.graph_stand_in import StandIn

CPU = torch.device("cpu")


class Variant:
    """``run(x, number, weight)`` under captures; the weight is static."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.api, self.said = StandIn(), list[str]()
        self.graphs = CudaGraphs(self.api, lambda topic, message: self.said.append(message), 2, lambda: 1)
        captured = self.graphs.wrap("the variant", lambda inputs: run(*inputs), CapturePlan((2,), (0, 1), CPU))
        assert isinstance(captured, CapturedVariant)
        self.captured = captured

    def __call__(self, x: Tensor, number: Any, weight: Tensor, sizes: tuple[int, ...] = ()) -> Any:
        return self.captured([x, number, weight], sizes)


def scaled() -> Variant:
    return Variant(lambda x, number, weight: (x * weight * number, number))


X, WEIGHT = torch.arange(4.0), torch.full((4,), 2.0)


def test_integers_are_part_of_the_key():
    """Their values are baked in: another one is warmed up and captured for itself, and given out."""
    variant = scaled()
    for _ in range(3):
        for number in (3, 5):
            output, given = variant(X, number, WEIGHT)
            assert torch.equal(output, X * 2 * number)
            assert given == number
    assert (variant.graphs.num_captures, variant.graphs.num_replays) == (2, 4)


@pytest.mark.parametrize(
    "other", [torch.arange(8.0)[::2], torch.arange(4), torch.arange(4.0).reshape(1, 4)], ids=["stride", "dtype", "shape"]
)
def test_forms_are_part_of_the_key(other):
    variant = scaled()
    for x in (X, X, other, other):
        assert torch.equal(variant(x, 3, WEIGHT)[0], x * 2 * 3)
    assert (variant.graphs.num_captures, variant.graphs.num_replays) == (2, 2)


def test_sizes_are_part_of_the_key():
    """Buffers of other sizes may lie where others lay, while all other inputs look the same."""
    variant = Variant(lambda x, number, weight: (weight.sum() + x[0],))
    memory = torch.arange(8.0)
    for size in (4, 4, 4, 8, 8, 4, 8):
        assert variant(X, 1, memory[:size], sizes=(size,))[0] == memory[:size].sum()
    assert variant.graphs.num_captures == 2


def test_moved_weight():
    variant = scaled()
    keep = [torch.full((4,), value) for value in (1.0, 2.0)]
    for weight in (keep[0], keep[0], keep[1], keep[1], keep[1]):
        assert torch.equal(variant(X, 3, weight)[0], X * weight * 3)
    assert (variant.graphs.num_captures, variant.graphs.num_replays) == (2, 4)


def test_an_output_that_is_an_input():
    """It is not the staging memory, which the next call overwrites."""
    variant = Variant(lambda x, number, weight: (x, weight, x[1:]))
    for value in (1.0, 2.0, 3.0):
        outputs = variant(torch.full((4,), value), 1, WEIGHT)
        assert [output[0].item() for output in outputs] == [value, 2, value]
    first = variant(torch.full((4,), 5.0), 1, WEIGHT)
    variant(torch.full((4,), 6.0), 1, WEIGHT)
    assert first[0].tolist() == [5.0] * 4
    assert first[2].tolist() == [5.0] * 3


def test_arguments_are_taken():
    """In torch's boxed convention: the caller's list is emptied."""
    graphs = scaled().captured
    graphs._run = lambda inputs: (inputs[0] * 1, inputs.clear())[:1]
    for _ in range(3):
        inputs = [X, 3, WEIGHT]
        graphs(inputs)
        assert inputs == []


def test_a_first_call_that_fails_is_no_warm_up():
    failing = [ValueError("no such thing")]

    def run(x: Tensor, number: int, weight: Tensor) -> tuple[Tensor]:
        if failing:
            raise failing.pop()
        return (x * weight,)

    variant = Variant(run)
    with pytest.raises(ValueError, match="no such thing"):
        variant(X, 1, WEIGHT)
    variant(X, 1, WEIGHT)
    assert variant.api.steps == []
    variant(X, 1, WEIGHT)
    assert variant.api.steps == ["synchronize", "empty cache", "begin", "end", "replay"]


class TestDebugging:
    @pytest.fixture(autouse=True)
    def debug(self):
        log = logging.getLogger("taylorseer_fx")
        before = log.level
        log.setLevel(logging.DEBUG)
        yield
        log.setLevel(before)

    def test_all_is_well(self):
        variant = scaled()
        for _ in range(4):
            variant(X, 3, WEIGHT)
        assert variant.graphs.num_replays == 3

    def test_captures_are_logged(self):
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())
        logging.getLogger("taylorseer_fx").addHandler(handler)
        keep = [torch.ones(4) for _ in range(3)]
        variant = scaled()
        for weight in keep:
            variant(X, 3, weight)
        variant(X, 3, keep[1])
        logging.getLogger("taylorseer_fx").removeHandler(handler)
        assert "captured the variant: 1 captures made, 1 held" in lines

    def test_another_form_at_the_same_address(self):
        """Cannot be while Dynamo guards the weights; should it be, it is an error and no wrong picture."""
        variant = scaled()
        weight = torch.ones(4)
        variant(X, 3, weight)
        variant(X, 3, weight)
        with pytest.raises(AssertionError, match="other shapes, strides or dtypes"):
            variant(X, 3, weight[:1].expand(4))

    def test_staging_memory_that_moved(self):
        variant = scaled()
        for _ in range(2):
            variant(X, 3, WEIGHT)
        (shape,) = variant.captured.shapes.values()
        shape.staging.tensors[0] = torch.ones(4)
        with pytest.raises(AssertionError, match="staging memory moved"):
            variant(X, 3, WEIGHT)


class TestLibraries:
    """A library, as cuBLAS: a handle for each thread, scratch memory for each CUDA stream."""

    def variant(self) -> Variant:
        variant = Variant(lambda x, number, weight: (variant.api.cuda.product(x, weight),))
        return variant

    def in_a_thread(self, variant: Variant, weight: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(variant, X, 1, weight).result()[0]

    def test_another_thread_captures(self):
        """It has no handle yet, which no capture can make: so it, too, runs as compiled first."""
        variant = self.variant()
        with ThreadPoolExecutor(1) as pool:
            for weight in map(torch.full, [(4,)] * 5, (1.0, 2.0, 3.0, 4.0, 5.0)):
                for _ in range(2):
                    variant(X, 1, weight)
                    assert torch.equal(pool.submit(variant, X, 1, weight).result()[0], X * weight)
        assert variant.said == []
        assert variant.graphs.num_held > 0

    def test_another_thread_replays(self):
        """What is captured already serves every thread at once."""
        variant = self.variant()
        for _ in range(2):
            variant(X, 1, WEIGHT)
        assert torch.equal(self.in_a_thread(variant, WEIGHT), X * WEIGHT)
        assert (variant.graphs.num_captures, variant.graphs.num_replays) == (1, 2)

    def test_captures_that_go(self):
        """Those that stay have their scratch memory; what the first call had, on the caller's CUDA stream, is in none of them."""
        variant = self.variant()
        weights = [torch.full((4,), float(i)) for i in range(MIN_LIMIT + 8)]
        for weight in weights * 2:
            for _ in range(3):
                assert torch.equal(variant(X, 1, weight)[0], X * weight)
        variant.api.cuda.clear_scratch()
        for weight in reversed(weights):
            assert torch.equal(variant(X, 1, weight)[0], X * weight)
        assert variant.graphs.num_held == MIN_LIMIT


def test_memory_is_freed_when_it_is_done_with():
    """Before captures go, what was enqueued is waited for: staging memory and pool may be read on any CUDA stream."""
    variant = scaled()
    for weight in (torch.ones(4), torch.ones(4) * 2):
        for _ in range(2):
            variant(X, 3, weight)
    variant.graphs.clear()
    gc.collect()
    log = variant.api.cuda.log
    assert "destroyed" in log[-2:]
    assert log.index("wait for main") < log.index("destroyed")
