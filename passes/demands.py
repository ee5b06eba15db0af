"""Determine in which windows each value is read, from the outputs backwards.

    %gate = slice(%ada, 1, 2d, 3d)        %ada is read in [:, 2d:3d]
    %y = add(%x, mul(%gate, %forecast))   %y is read in [:, 512:], and so are %x and %forecast
    %out = slice(%y, 1, 512, 4608)        %out is read whole

A node that is read in parts with little between them is computed in one piece. An operator without a rule
(``passes/window_rules.py``) is read whole and reads its inputs whole.
"""

from collections.abc import Collection

from torch import fx

from taylorseer_fx.passes.dataflow import live_nodes
from taylorseer_fx.passes.effects import has_effect
from taylorseer_fx.passes.gathers import communicates_less_in_parts, is_gathered
from taylorseer_fx.passes.window_rules import Needs, rule_of
from taylorseer_fx.passes.windows import Window, merged, sizes_of, whole

Demands = dict[fx.Node, tuple[Window, ...]]


def demanded(graph: fx.Graph, ready: Collection[fx.Node] = (), not_run: Collection[fx.Node] = ()) -> Demands:
    """The windows in which each node that lives is to be computed, if the nodes of ``ready`` are handed over ready-made and
    those of ``not_run``, which only they need, are not run.
    """
    asked: dict[fx.Node, list[Window]] = {}
    demands: Demands = {}
    for node in reversed(graph.nodes):
        if node.op == "output" or (node.op != "placeholder" and node not in not_run and has_effect(node)):
            asked.setdefault(node, []).append(whole(node))
        if node in asked:
            demands[node] = merged(asked[node], sizes_of(node)) if is_tensor(node) else _shared(asked[node])
            if node in ready:
                continue
            if not _can_be_in_parts(node, demands[node]):
                demands[node] = (whole(node),)
            for window in demands[node]:
                for source, part in _needs(node, window):
                    asked.setdefault(source, []).append(part)
    return demands


def all_demanded(graph: fx.Graph) -> Demands:
    """The demands if each live node were read whole."""
    live = live_nodes(graph)
    return {node: (whole(node),) for node in reversed(graph.nodes) if node in live}


def _needs(node: fx.Node, window: Window) -> Needs:
    needs = narrowed_needs(node, window)
    return needs if needs is not None else [(source, whole(source)) for source in node.all_input_nodes]


def _can_be_in_parts(node: fx.Node, windows: tuple[Window, ...]) -> bool:
    """Can ``node`` be computed in these windows? Not if each of several parts would mean to compute all of it."""
    if len(windows) == 1 or node.op != "call_function":
        return True
    can = all(narrowed_needs(node, part) is not None for part in windows)
    return can and (not is_gathered(node) or communicates_less_in_parts(node, windows))


def narrowed_needs(node: fx.Node, window: Window) -> Needs | None:
    """The windows of its inputs that ``window`` of ``node`` reads; None where that is all of them, for want of a rule."""
    rule = rule_of(node)
    needs = rule.needs(node, window) if rule is not None else None
    is_empty = any(part is not None and part[0] == part[1] for _, inner in needs or () for part in inner)
    return None if is_empty else needs


def is_tensor(node: fx.Node) -> bool:
    """Is the node's value one result, not a list of several?"""
    return not isinstance(node.meta.get("val"), (tuple, list))


def _shared(windows: list[Window]) -> tuple[Window, ...]:
    """The one window for all results of a node that has several, or everything."""
    distinct = dict.fromkeys(windows)
    return (windows[0],) if len(distinct) == 1 else ((None,) * len(windows[0]),)
