"""Append a node to a graph with its fake value, so that ``meta["val"]`` is always fresh for the next pass and for Inductor.

A node that a pass makes stands for one of the model's, named by ``standing_for``. It carries the line and the module of that
one, which Inductor's comments in kernels, profilers and errors name.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, wraps
from operator import attrgetter
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import SymInt, Tensor, fx
from torch.fx.traceback import NodeSource, NodeSourceAction, preserve_node_meta

from taylorseer_fx.compat import FakeTensorMode, LazyGraphModule, detect_fake_mode
from taylorseer_fx.passes.windows import Window

Emit = Callable[..., fx.Node]
P = ParamSpec("P")
T = TypeVar("T")

PLACE = {"nn_module_stack", "stack_trace"}  # where in the model a node was written
TO_THE_END = 2**63 - 1  # the end of such a slice


def graph_fake_mode(graph: fx.Graph) -> FakeTensorMode:
    """The fake mode that the values of ``graph`` were traced under."""
    mode = detect_fake_mode([node.meta.get("val") for node in graph.nodes if node.op == "placeholder"])
    return mode if mode is not None else FakeTensorMode(allow_non_fake_inputs=True)


@dataclass(frozen=True, eq=False)
class _Origin:
    """The metadata that a node standing for ``node`` carries."""

    node: fx.Node
    pass_name: str

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The metadata, made on demand, which is rare: it copies all that is known about the origin of ``node``."""
        place = {key: self.node.meta[key] for key in PLACE if key in self.node.meta}
        return {**place, "from_node": [NodeSource(self.node, self.pass_name, NodeSourceAction.CREATE)]}


_ORIGIN: ContextVar[_Origin | None] = ContextVar("origin", default=None)


@contextmanager
def standing_for(node: fx.Node, pass_name: str) -> Iterator[None]:
    """Nodes that are emitted inside stand for ``node``; where that is an input, which nobody wrote, for the one outside."""
    entered = _ORIGIN.set(_Origin(node, pass_name) if PLACE & node.meta.keys() else _ORIGIN.get())
    try:
        yield
    finally:
        _ORIGIN.reset(entered)


def emit_as_it_is(graph: fx.Graph, target: Callable[..., Any], args: Any, value: Any, kwargs: Any = None) -> fx.Node:
    """Append a node whose value is known, such as the call of a subgraph."""
    node = graph.call_function(target, args, kwargs)
    origin = _ORIGIN.get()
    node.meta = {**(origin.meta if origin is not None else {}), "val": value}
    return node


def emitter(graph: fx.Graph, mode: FakeTensorMode) -> Emit:
    """``emit(op, *args)`` appends ``op(*args)`` to ``graph`` at its insertion point."""

    def emit(target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        with mode, preserve_node_meta(False):
            fake_args, fake_kwargs = fx.map_arg((args, kwargs), lambda arg: arg.meta["val"])
            value = target(*fake_args, **fake_kwargs)
        return emit_as_it_is(graph, target, args, value, kwargs)

    return emit


def adds_all_or_nothing(find: Callable[Concatenate[fx.Graph, P], T]) -> Callable[Concatenate[fx.Graph, P], T]:
    """Wrap a pass that adds nodes to a graph, its first argument: should it fail, it has added none."""

    @wraps(find)
    def wrapped(graph: fx.Graph, /, *args: P.args, **kwargs: P.kwargs) -> T:
        before = set(graph.nodes)
        try:
            return find(graph, *args, **kwargs)
        except BaseException:
            for node in reversed(list(graph.nodes)):
                if node not in before:
                    graph.erase_node(node)
            raise

    return wrapped


def copied(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy of ``gm`` to work in."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {})).meta.update(gm.graph.output_node().meta)
    return graph_module(gm, graph, type(gm).__name__)


def graph_module(owner: Any, graph: fx.Graph, name: str = "GraphModule") -> fx.GraphModule:
    """``graph`` with the attributes it needs from ``owner``; its Python code is generated when somebody runs or prints it."""
    return LazyGraphModule(owner, graph, name)


def cast(emit: Emit, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """Cast ``node`` to ``dtype``; adds no node where it has that dtype already."""
    if node.meta["val"].dtype == dtype:
        return node
    return emit(torch.ops.prims.convert_element_type.default, node, dtype)


def emit_window(emit: Emit, node: fx.Node, window: Window) -> fx.Node:
    """Emit the part ``window`` of ``node``."""
    for dim, part in enumerate(window):
        if part is not None:
            node = emit(torch.ops.aten.slice.Tensor, node, dim, part[0], TO_THE_END if part[1] is None else part[1])
    return node


def emit_padded(emit: Emit, node: fx.Node, window: Window, sizes: Sequence[int | SymInt]) -> fx.Node:
    """A tensor of ``sizes`` that is ``node`` in ``window`` and zero elsewhere."""
    pads: list[int] = []
    for part, size in zip(reversed(window), reversed(sizes), strict=True):
        pads += (part[0], 0 if part[1] is None else int(size) - part[1]) if part is not None else (0, 0)
    return emit(torch.ops.aten.constant_pad_nd.default, node, pads, 0.0) if any(pads) else node


def placeholder(graph: fx.Graph, name: str, value: Tensor) -> fx.Node:
    node = graph.placeholder(name)
    node.meta["val"] = value
    return node


def outputs(graph: fx.Graph) -> tuple[Any, ...]:
    """The values that ``graph`` returns: nodes, or constants."""
    results: Any = graph.output_node().args[0]
    return tuple(results)


def attribute(gm: fx.GraphModule, node: fx.Node) -> Any:
    """The object that a ``get_attr`` node of ``gm`` refers to: a constant tensor, or the body of a higher-order operator."""
    return attrgetter(str(node.target))(gm)
