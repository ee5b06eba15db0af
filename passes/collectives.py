"""The collectives of a graph: what the ranks that share a model exchange in it.

%1 = all_reduce(%mm, "sum", "0")     over the group "0"; its result is what each rank receives
%2 = wait_tensor(%1)
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from torch import Tensor, fx

from taylorseer_fx.passes.sizes import hint

NAMESPACE = "_c10d_functional"
_SUMS = frozenset({"all_reduce", "all_reduce_"})


@dataclass(frozen=True)
class Collectives:
    """How often an operator is called in a graph, and the bytes of its results on each rank."""

    op: str
    count: int
    num_bytes: int


def group_of(node: fx.Node) -> str | None:
    """The name of the group that ``node`` communicates in; None where it does not."""
    if getattr(node.target, "namespace", None) != NAMESPACE:
        return None
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    if "group_name" not in names:
        return None  # it waits, or makes nothing but a view
    position = names.index("group_name")
    return str(node.kwargs["group_name"] if "group_name" in node.kwargs else node.args[position])


def find_groups(graph: fx.Graph) -> tuple[str, ...]:
    """The names of the groups that a graph communicates in, in the order of the first use of each."""
    return tuple(dict.fromkeys(group for node in graph.nodes if (group := group_of(node)) is not None))


def count_collectives(graph: fx.Graph) -> tuple[Collectives, ...]:
    """The collectives of a graph by operator, in the order of the first use of each."""
    found = [node for node in graph.nodes if group_of(node) is not None]
    counts = Counter(_name(node) for node in found)
    return tuple(Collectives(op, n, sum(_num_bytes(node) for node in found if _name(node) == op)) for op, n in counts.items())


def find_sums(graph: fx.Graph) -> frozenset[fx.Node]:
    """The sums over all ranks, which are then the same on each."""
    return frozenset(node for node in graph.nodes if group_of(node) is not None and _name(node) in _SUMS)


def _name(node: fx.Node) -> str:
    return str(node.target._opname)  # type: ignore[union-attr]


def _num_bytes(node: fx.Node) -> int:
    """A size may be symbolic: what it was when the graph was traced counts."""
    value = node.meta["val"]
    results: Iterable[Tensor] = value if isinstance(value, (tuple, list)) else (value,)
    return sum(prod(map(hint, result.shape)) * result.dtype.itemsize for result in results)
