"""Append a node to a graph with its fake value, so that ``meta["val"]`` is always fresh for the next pass and for Inductor."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.traceback import preserve_node_meta

Emit = Callable[..., fx.Node]


def graph_fake_mode(graph: fx.Graph) -> FakeTensorMode:
    """The fake mode that the values of ``graph`` were traced under."""
    mode = torch._guards.detect_fake_mode([node.meta.get("val") for node in graph.nodes if node.op == "placeholder"])
    return mode if mode is not None else FakeTensorMode(allow_non_fake_inputs=True)


def emitter(graph: fx.Graph, mode: FakeTensorMode) -> Emit:
    """``emit(op, *args)`` appends ``op(*args)`` to ``graph`` at its insertion point."""

    def emit(target: Callable[..., Any], *args: Any) -> fx.Node:
        node = graph.call_function(target, args)
        with mode, preserve_node_meta(False):
            node.meta["val"] = target(*fx.map_arg(args, lambda arg: arg.meta["val"]))
        return node

    return emit


def graph_module(owner: Any, graph: fx.Graph, name: str = "GraphModule") -> fx.GraphModule:
    """``graph`` with the attributes it needs from ``owner``; its Python code is generated when somebody runs or prints it."""
    return _LazyGraphModule(owner, graph, name)


def cast(emit: Emit, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """``node`` in ``dtype``; no node is added where it has it already."""
    if node.meta["val"].dtype == dtype:
        return node
    return emit(torch.ops.prims.convert_element_type.default, node, dtype)


def placeholder(graph: fx.Graph, name: str, value: Tensor) -> fx.Node:
    node = graph.placeholder(name)
    node.meta["val"] = value
    return node


def outputs(graph: fx.Graph) -> tuple[Any, ...]:
    """What ``graph`` returns: nodes, or constants."""
    results: Any = graph.output_node().args[0]
    return tuple(results)


def attribute(gm: fx.GraphModule, node: fx.Node) -> Any:
    """What a ``get_attr`` node of ``gm`` refers to: a constant tensor, or the body of a higher-order operator."""
    return attrgetter(str(node.target))(gm)
