"""Fold the predicate of every guarded branch: one graph per step kind, buffers updated in place.

    before:  %F, %b0', %b1' = cond(%is_full, region_full, region_forecast, (...))     return %out, %d0', %d1'

    FULL:      %F = ...region...                          FORECAST:  %F = add(mul(%b0, %w0), mul(%b1, %w1))
               copy_(%b1, %F)                                        return %out
               return %out

Snapshots change places: the newest is written over the oldest, and the runtime counts it as the newest from then on. Differences
are all written. A buffer that a branch passes through needs no copy. ``clean_up`` removes what the forecast leaves unread.
"""

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx

from taylorseer_fx.passes.emit import attribute, emit_as_it_is, graph_module, outputs, standing_for
from taylorseer_fx.passes.guard_regions import GuardedGraph, cond
from taylorseer_fx.passes.steps import StepKind


def specialize(guarded: GuardedGraph, kind: StepKind) -> fx.GraphModule:
    """The graph of one step kind. Inputs as the guarded graph's less ``is_full``; outputs are the original graph's."""
    source = guarded.gm.graph
    graph, attributes, env = fx.Graph(), dict[str, Any](), dict[fx.Node, Any]()
    for node in source.nodes:
        if node is guarded.is_full or node.op == "output" or _is_branch_name(node):
            continue
        if node.target is cond:
            env[node] = _inline(guarded, node, kind, graph, env, attributes)
        elif node.target is operator.getitem and isinstance(env[node.all_input_nodes[0]], tuple):
            env[node] = env[node.all_input_nodes[0]][node.args[1]]
        else:
            if node.op == "get_attr":
                attributes[str(node.target)] = attribute(guarded.gm, node)
            env[node] = graph.node_copy(node, env.__getitem__)
    results = fx.map_arg(outputs(source), env.__getitem__)
    for buffer, new in _stores(guarded, [env[buffer] for buffer in guarded.buffers], results[guarded.num_outputs :]):
        with standing_for(new, __name__):
            emit_as_it_is(graph, torch.ops.aten.copy_.default, (buffer, new), buffer.meta["val"])
    graph.output(tuple(results[: guarded.num_outputs])).meta.update(source.output_node().meta)
    return graph_module(attributes, graph, f"{kind.value.capitalize()}Step")


def _stores(guarded: GuardedGraph, old: Sequence[fx.Node], new: Sequence[fx.Node]) -> list[tuple[fx.Node, fx.Node]]:
    """The copies to make so that the buffers hold ``new``; snapshots are in age order, so only the newest is written."""
    if not guarded.storage.keeps_differences:
        num_features = len(old) // guarded.storage.num_buffers
        if new[0] is not old[0]:
            return list(zip(old[-num_features:], new[:num_features], strict=True))
    return [(before, after) for before, after in zip(old, new, strict=True) if after is not before]


def _is_branch_name(node: fx.Node) -> bool:
    return node.op == "get_attr" and bool(node.users) and all(user.target is cond for user in node.users)


def _inline(
    guarded: GuardedGraph, call: fx.Node, kind: StepKind, graph: fx.Graph, env: dict[fx.Node, Any], attributes: dict[str, Any]
) -> tuple[fx.Node, ...]:
    """Copy the chosen side of a branch into ``graph``; returns what the branch returns."""
    on_full, on_forecast, operands = cast(tuple[fx.Node, fx.Node, tuple[fx.Node, ...]], call.args[1:])
    branch = attribute(guarded.gm, on_full if kind is StepKind.FULL else on_forecast)
    inner = dict(zip(branch.graph.find_nodes(op="placeholder"), (env[operand] for operand in operands), strict=True))
    for node in branch.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            break
        if node.op == "get_attr":
            attributes[str(node.target)] = attribute(branch, node)
        inner[node] = graph.node_copy(node, inner.__getitem__)
    return tuple(fx.map_arg(outputs(branch.graph), inner.__getitem__))
