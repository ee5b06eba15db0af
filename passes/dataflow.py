"""Reachability as bit sets: one forward sweep answers every question of the region finder about which node depends on which.

Bits stand for *seeds*, a few chosen nodes, not for all nodes: a graph of n nodes and s seeds takes n * s / 8 bytes, and a sweep
is n big-integer ORs.
"""

from collections.abc import Container, Iterable, Sequence

from torch import fx

from taylorseer_fx.passes.effects import is_mutation
from taylorseer_fx.passes.ops import is_heavy


class SeedReach:
    """The seeds that each node visited so far, in graph order, depends on.

    ``reach`` holds all of them (a seed reaches itself). ``heavy_reach`` holds those whose way to the node leads through a heavy
    operator; at a residual add it goes on with what the trunk brought, since the branch's operators are that add's own.
    """

    def __init__(self, seeds: Iterable[fx.Node]) -> None:
        self.bits = {seed: 1 << i for i, seed in enumerate(dict.fromkeys(seeds))}
        self.reach: dict[fx.Node, int] = {}
        self.heavy_reach: dict[fx.Node, int] = {}

    def visit(self, node: fx.Node) -> None:
        above = heavy_above = 0
        for source in node.all_input_nodes:
            above |= self.reach[source]
            heavy_above |= self.heavy_reach[source]
        self.reach[node] = above | self.bits.get(node, 0)
        self.heavy_reach[node] = heavy_above | (above if is_heavy(node) else 0)

    def follow_trunk(self, add: fx.Node, trunk: fx.Node) -> None:
        self.heavy_reach[add] = self.heavy_reach[trunk]

    def depends(self, node: fx.Node, seed: fx.Node) -> bool:
        return bool(self.reach[node] & self.bits[seed])

    def depends_through_heavy(self, node: fx.Node, seed: fx.Node) -> bool:
        return bool(self.heavy_reach[node] & self.bits[seed])


def seed_reach(graph: fx.Graph, seeds: Iterable[fx.Node]) -> SeedReach:
    """The seeds that each node of ``graph`` depends on, along any path."""
    found = SeedReach(seeds)
    for node in graph.nodes:
        found.visit(node)
    return found


def live_nodes(graph: fx.Graph, cut: Iterable[fx.Node] = (), roots: Iterable[fx.Node] = ()) -> set[fx.Node]:
    """The nodes that the outputs and ``roots`` still need when every node of ``cut`` is handed to them ready-made.

    A cut node counts as live where something live reads it; what only it needs does not.
    """
    stop = set(cut)
    live: set[fx.Node] = set()
    stack: list[fx.Node] = [node for node in graph.nodes if node.op == "output" or is_mutation(node)]
    stack.extend(roots)
    while stack:
        node = stack.pop()
        if node in live:
            continue
        live.add(node)
        if node not in stop:
            stack.extend(node.all_input_nodes)
    return live


def ancestors(targets: Iterable[fx.Node], inside: Container[fx.Node] | None = None) -> dict[fx.Node, None]:
    """The ``targets`` and all nodes that lead to them, without leaving ``inside``."""
    found: dict[fx.Node, None] = {}
    stack = list(targets)
    while stack:
        node = stack.pop()
        if node not in found and (inside is None or node in inside):
            found[node] = None
            stack.extend(node.all_input_nodes)
    return found


def holds(node: fx.Node, sums: Container[fx.Node]) -> bool:
    """Does ``node`` need one of ``sums`` otherwise than through a heavy operator, beside other tokens for example?"""
    stack, seen = [node], set[fx.Node]()
    while stack:
        node = stack.pop()
        if node in sums:
            return True
        if node not in seen and not is_heavy(node):
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return False


def descends_from(targets: Sequence[fx.Node], sources: Iterable[fx.Node], positions: dict[fx.Node, int]) -> bool:
    """Does any of ``targets`` depend on any of ``sources``? Looks no further back than the earliest source."""
    wanted = set(sources)
    earliest = min(positions[node] for node in wanted)
    seen: set[fx.Node] = set()
    stack = list(targets)
    while stack:
        node = stack.pop()
        if node in wanted:
            return True
        if node in seen or positions[node] < earliest:
            continue
        seen.add(node)
        stack.extend(node.all_input_nodes)
    return False
