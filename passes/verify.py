"""The invariants of a graph after every stage; checked in debug mode and in the tests.

Each tensor has its fake value; inputs keep their order, new ones come last; nothing is written but what the traced graph wrote,
and, once a graph is that of one step kind, the buffers: once each, after all that reads them.
"""

from collections.abc import Iterable, Iterator

from torch import fx

from taylorseer_fx.passes.effects import is_mutation
from taylorseer_fx.passes.ops import aten


class Verifier:
    """Checks graph after graph; it knows the inputs that it met so far, and what the first of them wrote."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self._traced_inputs = {node.name for node in traced.graph.find_nodes(op="placeholder")}
        self._traced_writes = set(map(_write, _writes(traced.graph)))
        self._without_value = {str(node.target) for node in _without_value(traced)}  # torch's checks of sizes have none
        self._inputs: list[str] = []

    def check(self, gm: fx.GraphModule, *, stores: bool = False) -> None:
        """Check one graph; ``stores``: it may write to buffers.

        Raises:
            ValueError: an invariant does not hold; the message names it.
            RuntimeError: FX finds the graph ill-formed.
        """
        gm.graph.lint()
        if missing := [node.name for node in _without_value(gm) if str(node.target) not in self._without_value]:
            raise ValueError(f"no value is known of {_listed(missing)}")
        self._check_writes(gm.graph, stores)
        self._check_inputs([node.name for node in gm.graph.find_nodes(op="placeholder")])

    def _check_inputs(self, names: list[str]) -> None:
        known = set(self._inputs)
        old = [name for name in names if name in known]
        if names[: len(old)] != old or old != [name for name in self._inputs if name in set(old)]:
            raise ValueError(f"the inputs changed places: {_listed(names)}")
        self._inputs += names[len(old) :]

    def _check_writes(self, graph: fx.Graph, stores: bool) -> None:
        written = [node for node in _writes(graph) if _write(node) not in self._traced_writes]
        ours = [node for node in written if stores and self._is_store(node)]
        if others := [node.name for node in written if node not in ours]:
            raise ValueError(f"written to in a graph that was functional: by {_listed(others)}")
        position = {node: i for i, node in enumerate(graph.nodes)}
        late = [user.name for store in ours for user in store.all_input_nodes[0].users if position[user] > position[store]]
        if late:
            raise ValueError(f"buffers are read after they were written to: by {_listed(late)}")

    def _is_store(self, node: fx.Node) -> bool:
        into = node.args[0]
        is_buffer = isinstance(into, fx.Node) and into.op == "placeholder" and into.name not in self._traced_inputs
        return node.target in (aten.copy_.default, aten.index_put_.default) and is_buffer


def nodes_without_value(gm: fx.GraphModule) -> list[str]:
    """Nodes of ``gm`` and its subgraphs that compute something and carry no ``meta["val"]``."""
    return [node.name for node in _without_value(gm)]


def _without_value(gm: fx.GraphModule) -> Iterator[fx.Node]:
    yield from (node for node in gm.graph.nodes if node.op in ("placeholder", "call_function") and "val" not in node.meta)
    for child in gm.children():
        if isinstance(child, fx.GraphModule):
            yield from _without_value(child)


def _writes(graph: fx.Graph) -> Iterator[fx.Node]:
    return (node for node in graph.nodes if is_mutation(node))


def _write(node: fx.Node) -> tuple[str, str]:
    """The identity of a write, whatever its node is called."""
    return str(node.target), str(node.args[0]) if node.args else ""


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
