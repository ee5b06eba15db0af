"""Compute of every value only what is read: slices go up through the graph, to the weights, the buffers and the inputs.

    before:  %ada = addmm(%b, %t, permute(%w))                         shift, scale, gate, shift, scale, gate
             %gate = slice(%ada, 1, 2d, 3d)                            the others are dead in a forecast step
             %y = add(cat(%text, %image), mul(%gate, %forecast))
             %out = slice(%y, 1, 512, 4608)                            the text is not read

    after:   %gate = addmm(slice(%b, 0, 2d, 3d), %t, permute(slice(%w, 0, 2d, 3d)))
             %out = add(%image, mul(%gate, slice(%forecast, 1, 512, 4608)))

First every node is asked from its users backwards in which windows it is read (``demanded``); a node that is read in parts with
little between them is computed in one piece. Then the graph is built anew. An operator without a rule
(``passes/window_rules.py``) is read whole and reads its inputs whole.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from taylorseer_fx.passes.clean_up import has_effect
from taylorseer_fx.passes.dataflow import live_nodes
from taylorseer_fx.passes.emit import Emit, emit_window, emitter, graph_fake_mode, graph_module, standing_for
from taylorseer_fx.passes.window_rules import Needs, rule_of
from taylorseer_fx.passes.windows import Window, contains, is_whole, merged, sizes_of, whole

Demands = dict[fx.Node, tuple[Window, ...]]


def narrow(gm: fx.GraphModule) -> fx.GraphModule:
    """A new graph with the outputs of ``gm``, less what nobody reads; the placeholders keep their number and order."""
    rebuilt = _Rebuilt(demanded(gm.graph), fx.Graph())
    rebuilt.emit = emitter(rebuilt.graph, graph_fake_mode(gm.graph))
    for node in gm.graph.nodes:
        rebuilt.add(node)
    return graph_module(gm, rebuilt.graph, type(gm).__name__)


def demanded(graph: fx.Graph, cut: Collection[fx.Node] = (), gone: Collection[fx.Node] = ()) -> Demands:
    """The windows in which each node that lives is to be computed, if the nodes of ``cut`` are handed over ready-made and those
    of ``gone``, which only they need, are not run.
    """
    asked: dict[fx.Node, list[Window]] = {}
    demands: Demands = {}
    for node in reversed(graph.nodes):
        if node.op == "output" or (node.op != "placeholder" and node not in gone and has_effect(node)):
            asked.setdefault(node, []).append(whole(node))
        if node in asked:
            demands[node] = merged(asked[node], sizes_of(node)) if _is_tensor(node) else _shared(asked[node])
            if node in cut:
                continue
            if not _can_be_in_parts(node, demands[node]):
                demands[node] = (whole(node),)
            for window in demands[node]:
                for source, part in _needs(node, window):
                    asked.setdefault(source, []).append(part)
    return demands


def all_demanded(graph: fx.Graph) -> Demands:
    """The same, if each node that lives were read whole."""
    live = live_nodes(graph)
    return {node: (whole(node),) for node in reversed(graph.nodes) if node in live}


def _needs(node: fx.Node, window: Window) -> Needs:
    needs = _narrowed_needs(node, window)
    return needs if needs is not None else [(source, whole(source)) for source in node.all_input_nodes]


def _can_be_in_parts(node: fx.Node, windows: tuple[Window, ...]) -> bool:
    """Not where computing a part means to compute all of it: several parts would, several times."""
    return len(windows) == 1 or node.op != "call_function" or all(_narrowed_needs(node, part) is not None for part in windows)


def _narrowed_needs(node: fx.Node, window: Window) -> Needs | None:
    rule = rule_of(node)
    needs = rule.needs(node, window) if rule is not None else None
    is_empty = any(part is not None and part[0] == part[1] for _, inner in needs or () for part in inner)
    return None if is_empty else needs


def _is_tensor(node: fx.Node) -> bool:
    return not isinstance(node.meta.get("val"), (tuple, list))


def _shared(windows: list[Window]) -> tuple[Window, ...]:
    """For a node with several results: one window for all of them, or everything."""
    distinct = dict.fromkeys(windows)
    return (windows[0],) if len(distinct) == 1 else ((None,) * len(windows[0]),)


@dataclass
class _Rebuilt:
    """The new graph; ``values`` are its nodes by old node and window."""

    demands: Demands
    graph: fx.Graph
    values: dict[fx.Node, dict[Window, fx.Node]] = field(default_factory=dict)
    emit: Emit = field(init=False)

    def add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.values[node] = {whole(node): self.graph.node_copy(node)}
        elif node in self.demands:
            self.values[node] = {}
            with standing_for(node, __name__):
                for window in self.demands[node]:
                    self.values[node][window] = self._compute(node, window)

    def _compute(self, node: fx.Node, window: Window) -> fx.Node:
        needs = _narrowed_needs(node, window)
        if needs is not None and any(not _is_tensor(source) and part not in self.values[source] for source, part in needs):
            needs = None  # of a node with several results, which was computed whole
        if needs is None or self._is_as_before(node, window, needs):
            copy = self.graph.node_copy(node, lambda source: self.get(source, whole(source)))
            return emit_window(self.emit, copy, window) if needs is None else copy
        rule = rule_of(node)
        assert rule is not None
        value = rule.build(self.emit, node, window, [self.get(source, part) for source, part in needs])
        if value.op == "call_function":
            for key, entry in node.meta.items():
                value.meta.setdefault(key, entry)
        return value

    @staticmethod
    def _is_as_before(node: fx.Node, window: Window, needs: Needs) -> bool:
        parts = dict(needs)
        return parts.keys() == set(node.all_input_nodes) and all(map(is_whole, (window, *parts.values())))

    def get(self, node: fx.Node, window: Window) -> fx.Node:
        """``node`` in ``window``, cut out of what is computed of it."""
        known = self.values[node]
        if window not in known:
            outer = next(computed for computed in known if contains(computed, window))
            offset = tuple(_relative(part, base) for part, base in zip(window, outer, strict=True))
            with standing_for(node, __name__):
                known[window] = emit_window(self.emit, known[outer], offset)
        return known[window]


def _relative(part: Any, base: Any) -> Any:
    """The interval ``part`` as seen within ``base``."""
    if part is None or base is None or part == base:
        return part if base is None else None
    return part[0] - base[0], None if part[1] is None else part[1] - base[0]
