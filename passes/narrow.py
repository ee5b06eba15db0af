"""Compute only the part of each value that is read, by moving slices up to the weights, the buffers and the inputs.

    before:  %ada = addmm(%b, %t, permute(%w))                         shift, scale, gate, shift, scale, gate
             %gate = slice(%ada, 1, 2d, 3d)                            the others are dead in a forecast step
             %y = add(cat(%text, %image), mul(%gate, %forecast))
             %out = slice(%y, 1, 512, 4608)                            the text is not read

    after:   %gate = addmm(slice(%b, 0, 2d, 3d), %t, permute(slice(%w, 0, 2d, 3d)))
             %out = add(%image, mul(%gate, slice(%forecast, 1, 512, 4608)))

Each node is computed in the windows in which it is read (``passes/demands.py``); so the graph is built anew.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from taylorseer_fx.passes.demands import Demands, demanded, is_tensor, narrowed_needs
from taylorseer_fx.passes.emit import Emit, emit_window, emitter, graph_fake_mode, graph_module, standing_for
from taylorseer_fx.passes.window_rules import Needs, rule_of
from taylorseer_fx.passes.windows import Window, contains, is_whole, whole


def narrow(gm: fx.GraphModule) -> fx.GraphModule:
    """A new graph with the outputs of ``gm``, less what nobody reads; the placeholders keep their number and order."""
    rebuilt = _Rebuilt(demanded(gm.graph), fx.Graph())
    rebuilt.emit = emitter(rebuilt.graph, graph_fake_mode(gm.graph))
    for node in gm.graph.nodes:
        rebuilt.add(node)
    return graph_module(gm, rebuilt.graph, type(gm).__name__)


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
        needs = narrowed_needs(node, window)
        if needs is not None and any(not is_tensor(source) and part not in self.values[source] for source, part in needs):
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
