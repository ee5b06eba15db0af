"""What is said of a graph without regions: the sums that come nearest to a residual add, and what stopped each."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from taylorseer_fx.passes.near_misses import MOST, count_heavy, find_near_misses
from taylorseer_fx.passes.regions import NearMiss
from tests.graphs import Traced, find, pass_inputs, trace
from tests.torch_version import since_2_12


class Model(nn.Module):
    """A function of two layers and a stream."""

    def __init__(self, function: Callable[["Model", Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.f, self.g = function, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def misses_of(function: Callable[[Model, Tensor], Tensor]) -> tuple[NearMiss, ...]:
    traced = trace(Model(function), torch.randn(2, 4, 8))
    gm, found = pass_inputs(traced)
    assert not found.regions
    return find_near_misses(gm.graph, parameters(traced, gm))


def parameters(traced: Traced, gm: torch.fx.GraphModule) -> list[torch.fx.Node]:
    placeholders = gm.graph.find_nodes(op="placeholder")
    return [placeholders[i] for i in traced.static_inputs]


CASES = [
    (lambda m, x: x[:, :1] + m.f(x), "its sides differ in shape: [2, 1, 8] and [2, 4, 8]", "shapes"),
    (lambda m, x: m.f(x) + m.g(x), "neither side is what the other starts from: they end in view and view", "two-branches"),
    (
        lambda m, x: m.f(x + x.tanh()).relu(),
        "no matrix product, convolution or attention lies between its sides",
        "nothing-heavy",
    ),
    (lambda m, x: x.sin() + x.cos(), "no matrix product, convolution or attention comes before it", "none-at-all"),
]


@pytest.mark.parametrize(("function", "why"), [case[:2] for case in CASES], ids=[case[2] for case in CASES])
def test_what_stopped_a_sum(function, why):
    (miss,) = misses_of(function)
    assert miss.why == why
    assert miss.line.startswith("test_near_misses.py:")
    assert str(miss) == f"{miss.path}: {miss.line}: {why}"


def test_the_nearest_come_first_and_there_are_few():
    def many(m: Model, x: Tensor) -> Tensor:
        a = x.sin() + x.cos()
        b = a.tan() + a.tanh()
        c = m.f(b) + m.g(b)
        d = c[:, :1] + m.f(c)
        e = d.exp() + d
        f = e.sin() + e
        return f.tanh() + f.cos()

    found = misses_of(many)
    assert len(found) == MOST
    assert [miss.why.split()[0] for miss in found[:2]] == ["its", "neither"]


def test_what_is_the_same_in_every_call_is_no_miss():
    """A bias, or an embedding of positions."""
    assert misses_of(lambda m, x: m.f(x) + m.g.weight[:4]) == ()


def test_a_residual_add_is_no_miss():
    traced = trace(Model(lambda m, x: x + m.f(x)), torch.randn(2, 4, 8))
    gm, found = pass_inputs(traced)
    assert len(found.regions) == 1
    assert find_near_misses(gm.graph, parameters(traced, gm)) == ()


@pytest.mark.parametrize(
    ("function", "shape", "counts"),
    [
        pytest.param(lambda m, x: m.f(x).relu(), (1, 8), (1, 1), id="a-product-of-one-row"),
        pytest.param(lambda m, x: m.f(x).relu(), (3, 8), (1, 0), id="a-product"),
        pytest.param(lambda m, x: m.f(m.g(x)), (2, 4, 8), (2, 0), id="two-products"),
        pytest.param(
            lambda m, x: F.scaled_dot_product_attention(x, x, x),
            (1, 1, 8),
            (1, 1),
            id="two-products-of-one-attention",
            marks=since_2_12,
        ),
        pytest.param(lambda m, x: x.relu(), (3, 8), (0, 0), id="none"),
    ],
)
def test_operators_are_counted_as_the_model_calls_them(function, shape, counts):
    assert count_heavy(find(Model(function), torch.randn(shape)).gm.graph) == counts
