"""A graph kept as plain data comes back as it was, and holds no node meanwhile."""

import gc
import weakref

import torch
from torch import Tensor, fx, nn

from taylorseer_fx.passes.plain_graph import PlainGraph
from tests.graphs import trace, two_layers


def test_comes_back():
    """Names, operators, arguments, values and the module of every node."""
    model, args = two_layers()
    gm = trace(model, *args).gm
    again = PlainGraph.of(gm).rebuild()
    assert str(again.graph) == str(gm.graph)
    for old, new in zip(gm.graph.nodes, again.graph.nodes, strict=True):
        assert new.meta.get("val") is old.meta.get("val")
        assert new.meta.get("nn_module_stack") == old.meta.get("nn_module_stack")
    again.graph.lint()


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(3.0))

    def forward(self, x: Tensor, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        both = torch.cat([x.relu(), x + self.table], dim=0)
        return both[:n], {"sum": torch.add(both[:2], x[:1], alpha=n)}


def test_attributes_and_nested_arguments():
    """A constant is the same object; nodes are found inside of lists, slices, keywords and dictionaries."""
    gm = fx.symbolic_trace(Nested())
    again = PlainGraph.of(gm).rebuild()
    x = torch.randn(2, 3)
    assert again.table is gm.table
    (rows, sums), (expected_rows, expected_sums) = again(x, 3), gm(x, 3)
    assert torch.equal(rows, expected_rows)
    assert torch.equal(sums["sum"], expected_sums["sum"])


def test_holds_no_node():
    """The graph may go; of two that are made again, one may be changed and the other is what it was."""
    gm = fx.symbolic_trace(Nested())
    text, graph = str(gm.graph), weakref.ref(gm.graph)
    plain = PlainGraph.of(gm)
    del gm
    gc.collect()
    assert graph() is None
    changed = plain.rebuild()
    changed.graph.erase_node(changed.graph.output_node())
    assert str(changed.graph) != str(plain.rebuild().graph) == text
