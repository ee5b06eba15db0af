"""A weight that is sharded over ranks: only the rows that are read are communicated, and they are the right ones."""

from math import prod
from typing import Any
from unittest import mock

import pytest
import torch
from expecttest import TestCase
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from taylorseer_fx.passes import gathers
from taylorseer_fx.passes.clean_up import clean_up
from taylorseer_fx.passes.collectives import count_collectives, find_groups, group_of
from taylorseer_fx.passes.narrow import narrow
from tests.graphs import hand_made, op_counts, op_name, render

aten = torch.ops.aten
c10d: Any = pytest.importorskip("torch.distributed") and torch.ops._c10d_functional
WIDTH = 3


def gathered(emit: Any, shard: fx.Node, world_size: int) -> fx.Node:
    gather = emit(c10d.all_gather_into_tensor.default, shard, world_size, "0")
    return emit(c10d.wait_tensor.default, gather)


def reading(parts: list[tuple[int, int]], num_rows: int, world_size: int) -> fx.GraphModule:
    """A graph that reads ``parts`` of the rows of a weight, of which each rank has ``num_rows``."""

    def build(emit: Any, shard: fx.Node) -> list[fx.Node]:
        whole = gathered(emit, shard, world_size)
        return [emit(aten.slice.Tensor, whole, 0, *part) for part in parts]

    return hand_made(build, (num_rows, WIDTH))


def narrowed(gm: fx.GraphModule) -> fx.GraphModule:
    return clean_up(narrow(gm)).gm


def run(gm: fx.GraphModule, weight: Tensor, world_size: int) -> list[list[Tensor]]:
    """What each rank returns, all of them run operator by operator at the same time."""
    shards = weight.chunk(world_size)
    values: dict[fx.Node, list[Any]] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            values[node] = list(shards)
        elif node.op == "output":
            return [[values[result][rank] for result in node.args[0]] for rank in range(world_size)]
        elif op_name(node) == "all_gather_into_tensor":
            values[node] = [torch.cat(values[node.args[0]])] * world_size
        elif op_name(node) == "broadcast":
            values[node] = [values[node.args[0]][node.args[1]]] * world_size
        elif op_name(node) == "wait_tensor":
            values[node] = values[node.args[0]]
        else:
            arguments = [fx.map_arg((node.args, node.kwargs), lambda each, r=rank: values[each][r]) for rank in range(world_size)]
            values[node] = [node.target(*args, **kwargs) for args, kwargs in arguments]
    raise AssertionError("a graph ends in its output")


def assert_same(gm: fx.GraphModule, num_rows: int, world_size: int) -> None:
    weight = torch.arange(float(world_size * num_rows * WIDTH)).reshape(-1, WIDTH)
    for before, after in zip(run(gm, weight, world_size), run(narrowed(gm), weight, world_size), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def num_received(gm: fx.GraphModule) -> int:
    """Elements that each rank receives."""
    return sum(prod(node.meta["val"].shape) for node in gm.graph.nodes if group_of(node) is not None)


class TestSnapshots(TestCase):
    maxDiff = None

    def test_gates(self):
        """The gates of both branches, at the same place in either rank's shard: one gather of a third of the rows."""
        gm = reading([(4, 6), (10, 12)], num_rows=6, world_size=2)
        self.assertExpectedInline(
            render(narrowed(gm)),
            """\
%x0 : float32[6, 3]
%slice = slice(%x0, 0, 4, 6) : float32[2, 3]
%all_gather_into_tensor = all_gather_into_tensor(%slice, 2, 0) : float32[4, 3]
%wait_tensor = wait_tensor(%all_gather_into_tensor) : float32[4, 3]
%slice1 = slice(%wait_tensor, 0, 0, 2) : float32[2, 3]
%slice2 = slice(%wait_tensor, 0, 2, 4) : float32[2, 3]
return (%slice1, %slice2)""",
        )
        assert_same(gm, 6, 2)


@pytest.fixture
def everything_counts(monkeypatch):
    """The weights of these tests are small."""
    monkeypatch.setattr(gathers, "MIN_BYTES", 0)


@given(
    data=st.data(), num_rows=st.integers(1, 6), world_size=st.integers(1, 6), min_bytes=st.sampled_from([0, gathers.MIN_BYTES])
)
@settings(deadline=None, max_examples=100)
def test_same_rows(data, num_rows, world_size, min_bytes):
    """Whatever is read of it; and never is more communicated than before."""
    total = num_rows * world_size
    part = st.integers(0, total - 1).flatmap(lambda start: st.tuples(st.just(start), st.integers(start + 1, total)))
    gm = reading(data.draw(st.lists(part, min_size=1, max_size=4)), num_rows, world_size)
    with mock.patch.object(gathers, "MIN_BYTES", min_bytes):
        assert_same(gm, num_rows, world_size)
        assert num_received(narrowed(gm)) <= num_received(gm)


@pytest.mark.usefixtures("everything_counts")
@pytest.mark.parametrize(("world_size", "num_rows"), [(4, 3), (8, 2), (6, 2)])
def test_gates_over_more_ranks(world_size, num_rows):
    """Those who have rows of a gate send them: exactly what is read is communicated."""
    total = world_size * num_rows
    parts = [(total // 3, total // 2), (total * 5 // 6, total)]
    gm = reading(parts, num_rows, world_size)
    assert num_received(narrowed(gm)) == sum(end - start for start, end in parts) * WIDTH
    assert_same(gm, num_rows, world_size)


@pytest.mark.usefixtures("everything_counts")
def test_rows_of_many_ranks():
    """With as many broadcasts as ranks that have some, one gather of all is left."""
    gm = reading([(0, 5)], num_rows=1, world_size=12)
    assert num_received(narrowed(gm)) == num_received(gm) == 12 * WIDTH


def test_a_few_bytes_of_two_ranks():
    """Each would have to give other rows, and several collectives are not worth it."""
    gm = reading([(4, 8)], num_rows=6, world_size=8)
    assert num_received(narrowed(gm)) == num_received(gm) == 48 * WIDTH


def test_columns():
    """Columns are cut before the gather, and laid out one after another for it."""

    def build(emit: Any, shard: fx.Node) -> list[fx.Node]:
        return [emit(aten.slice.Tensor, gathered(emit, shard, 2), 1, 1, 3)]

    gm = hand_made(build, (4, WIDTH))
    assert num_received(narrowed(gm)) == 8 * 2
    assert op_counts(narrowed(gm))["clone"] == 1
    assert_same(gm, 4, 2)


def test_a_gather_that_is_read_twice_stays():
    """Its result is read before it is waited for, too, so it is needed as it is."""

    def build(emit: Any, shard: fx.Node) -> list[fx.Node]:
        gather = emit(c10d.all_gather_into_tensor.default, shard, 2, "0")
        return [emit(aten.slice.Tensor, emit(c10d.wait_tensor.default, gather), 0, 0, 2), emit(aten.alias.default, gather)]

    gm = hand_made(build, (4, WIDTH))
    assert num_received(narrowed(gm)) == num_received(gm)


def test_counts():
    """Operators that wait are none; bytes are those of the results."""

    def build(emit: Any, shard: fx.Node) -> list[fx.Node]:
        reduced = emit(c10d.wait_tensor.default, emit(c10d.all_reduce.default, shard, "sum", "1"))
        return [gathered(emit, shard, 2), gathered(emit, reduced, 3)]

    graph = hand_made(build, (4, WIDTH)).graph
    assert find_groups(graph) == ("1", "0")
    counted = {entry.op: (entry.count, entry.num_bytes) for entry in count_collectives(graph)}
    assert counted == {"all_reduce": (1, 48), "all_gather_into_tensor": (2, 96 + 144)}
