"""A graph as plain data that it can be rebuilt from, so that no graph need stay alive once its numbers are counted.

    graph        mm = aten.mm(x, w); relu = aten.relu(mm)          Node objects, each of which holds all of its graph
    plain data   (aten.mm, (#0, #1)), (aten.relu, (#2,))           tuples, of which any number of settings share one

It keeps the values and the origins among the metadata. Any graph can be kept so, not only one that can be pickled, but only in
this process.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.fx.node import map_aggregate

from taylorseer_fx.passes.emit import PLACE, attribute, graph_module

KEPT_METADATA = ("val", *PLACE)


@dataclass(frozen=True)
class _At:
    """Stands for the node at a position."""

    position: int


@dataclass(frozen=True)
class _PlainNode:
    op: str
    target: Any
    args: Any
    kwargs: Any
    name: str
    type_expr: Any
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class PlainGraph:
    """The nodes in order, and the attributes that they refer to."""

    nodes: tuple[_PlainNode, ...]
    attributes: Mapping[str, Any]

    @classmethod
    def of(cls, gm: fx.GraphModule) -> "PlainGraph":
        """Make plain data of ``gm``, which is left as it is and not referred to."""
        places: dict[fx.Node, Any] = {node: _At(i) for i, node in enumerate(gm.graph.nodes)}
        read = gm.graph.find_nodes(op="get_attr")
        return cls(tuple(_plain(node, places) for node in places), {str(node.target): attribute(gm, node) for node in read})

    def rebuild(self) -> fx.GraphModule:
        """Rebuild the graph, which the caller may change."""
        graph, nodes = fx.Graph(), list[fx.Node]()

        def linked(value: Any) -> Any:
            return map_aggregate(value, lambda leaf: nodes[leaf.position] if isinstance(leaf, _At) else leaf)

        for entry in self.nodes:
            node = graph.create_node(
                entry.op, entry.target, linked(entry.args), linked(entry.kwargs), entry.name, entry.type_expr
            )
            node.meta = dict(entry.meta)
            nodes.append(node)
        return graph_module(dict(self.attributes), graph)


def _plain(node: fx.Node, places: Mapping[fx.Node, Any]) -> _PlainNode:
    meta = {key: node.meta[key] for key in KEPT_METADATA if key in node.meta}
    args, kwargs = (fx.map_arg(value, places.__getitem__) for value in (node.args, node.kwargs))
    return _PlainNode(node.op, node.target, args, kwargs, node.name, node.type, meta)
