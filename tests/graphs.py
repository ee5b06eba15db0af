"""Helpers for tests of passes: trace a module as the backend does, show a graph as stable text, count what a pass changed."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from taylorseer_fx.compile import make_eager, trace_and_compile
from taylorseer_fx.passes.canonicalize import canonicalize
from taylorseer_fx.passes.emit import PLACE, emitter, placeholder
from taylorseer_fx.passes.find_regions import find_regions
from taylorseer_fx.passes.find_stack import find_stack
from taylorseer_fx.passes.regions import RegionSet


@dataclass(frozen=True)
class Traced:
    """The functional ATen graph of one call, its fake inputs, its real ones, and the positions of its weights."""

    gm: fx.GraphModule
    fake_inputs: tuple[Any, ...]
    real_inputs: tuple[Any, ...]
    static_inputs: tuple[int, ...]

    def position(self, tensor: Tensor) -> int:
        """Which input of the graph ``tensor`` is: a parameter of the module or an argument of the call."""
        (position,) = [i for i, real in enumerate(self.real_inputs) if real is tensor]
        return position

    def node(self, gm: fx.GraphModule, tensor: Tensor) -> fx.Node:
        """The placeholder of ``tensor`` in ``gm``, a graph that takes the same inputs."""
        return gm.graph.find_nodes(op="placeholder")[self.position(tensor)]


@dataclass(frozen=True)
class Found:
    """The canonical graph of a module and the regions in it."""

    traced: Traced
    gm: fx.GraphModule
    regions: RegionSet

    def node(self, tensor: Tensor) -> fx.Node:
        return self.traced.node(self.gm, tensor)

    def region_of(self, op: str, count: int = 0) -> int | None:
        """The index of the region that holds the ``count``-th node of operator ``op``; None where it is outside of all."""
        node = [node for node in self.gm.graph.nodes if op_name(node) == op][count]
        return next((i for i, region in enumerate(self.regions.regions) if node in region.nodes), None)

    @property
    def kinds(self) -> list[str]:
        return [region.kind.value for region in self.regions.regions]

    @property
    def paths(self) -> list[str]:
        return [region.path for region in self.regions.regions]

    @property
    def features(self) -> list[list[tuple[int, ...]]]:
        """Shapes of the features of each region."""
        return [[tuple(f.node.meta["val"].shape) for f in region.features] for region in self.regions.regions]

    @property
    def reasons(self) -> list[str]:
        return [entry.reason.name for entry in self.regions.rejected]


def trace(model: nn.Module, *args: Any, options: Mapping[str, Any] | None = None, dynamic: bool = False, **kwargs: Any) -> Traced:
    """Trace one call of ``model`` through the very entry that the backend uses; the model must give one graph."""
    graphs: list[tuple[fx.GraphModule, tuple[Any, ...], tuple[int, ...]]] = []
    real: list[tuple[Any, ...]] = []

    def keep(gm: fx.GraphModule, inputs: Sequence[Any], static_inputs: Sequence[int], _compile_graph: Any) -> Any:
        graphs.append((gm, tuple(inputs), tuple(static_inputs)))
        run = make_eager(gm, inputs, ())

        def kept_run(boxed: list[Any]) -> Any:
            real.append(tuple(boxed))
            return run(boxed)

        kept_run._boxed_call = True
        return kept_run

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=lambda gm, i: trace_and_compile(gm, i, keep, options or {}), dynamic=dynamic)
    with torch.no_grad():
        compiled(*args, **kwargs)
    assert len(graphs) == 1, f"{type(model).__name__} gives {len(graphs)} graphs"
    gm, inputs, static_inputs = graphs[0]
    return Traced(gm, inputs, real[0], static_inputs)


def pass_inputs(traced: Traced) -> tuple[fx.GraphModule, RegionSet]:
    """The canonical graph of ``traced`` and its regions."""
    gm = canonicalize(traced.gm)
    placeholders = gm.graph.find_nodes(op="placeholder")
    return gm, find_regions(gm.graph, [placeholders[i] for i in traced.static_inputs])


def find(model: nn.Module, *args: Any, **kwargs: Any) -> Found:
    """Trace ``model``, canonicalise, and find its regions."""
    traced = trace(model, *args, **kwargs)
    return Found(traced, *pass_inputs(traced))


def find_stacks(model: nn.Module, *args: Any, **kwargs: Any) -> Found:
    """Trace ``model``, canonicalise, and find its stacks."""
    return stacks_in(trace(model, *args, **kwargs))


def stacks_in(traced: Traced) -> Found:
    gm = canonicalize(traced.gm)
    placeholders = gm.graph.find_nodes(op="placeholder")
    return Found(traced, gm, find_stack(gm.graph, [placeholders[i] for i in traced.static_inputs]))


@contextmanager
def left_as_it_is(gm: fx.GraphModule) -> Iterator[None]:
    """A pass returns a new graph: whatever runs inside, ``gm`` must come out as it went in, values included."""
    before, nodes, meta = render(gm), list(gm.graph.nodes), [dict(node.meta) for node in gm.graph.nodes]
    yield
    assert render(gm) == before
    assert list(gm.graph.nodes) == nodes
    scratch = {"mutation_region_id"}  # torch's own memo of where it looked for writes
    assert [node.meta.keys() - scratch for node in nodes] == [entry.keys() - scratch for entry in meta]
    assert all(node.meta.get("val") is entry.get("val") for node, entry in zip(nodes, meta, strict=True))


def hand_made(build: Any, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    """A graph written by hand: ``build(emit, *inputs)`` returns its outputs; ``emit(op, *args)`` adds a node with its value."""
    graph, mode = fx.Graph(), FakeTensorMode()
    with mode:
        inputs = [placeholder(graph, f"x{i}", torch.empty(shape, dtype=dtype)) for i, shape in enumerate(shapes)]
    graph.output(tuple(build(emitter(graph, mode), *inputs)))
    return fx.GraphModule({}, graph)


def render(gm: fx.GraphModule, *, bodies: bool = True) -> str:
    """One line a node, ``%name = op(args) : dtype[shape]``, then the subgraphs; free of paths, line numbers and torch's names."""
    lines = _render_graph(gm.graph)
    for node in gm.graph.find_nodes(op="get_attr") if bodies else []:
        body = getattr(gm, str(node.target))
        if isinstance(body, fx.GraphModule):
            lines += ["", f"{node.target}:", *_render_graph(body.graph)]
    return "\n".join(lines)


def _render_graph(graph: fx.Graph) -> list[str]:
    names = _stable_names(graph)
    lines = []
    for node in graph.nodes:
        if node.op == "placeholder":
            lines.append(f"%{names[node]} : {_type_text(node)}")
        elif node.op == "get_attr":
            lines.append(f"%{names[node]} = attribute {node.target}")
        elif node.op == "output":
            lines.append(f"return {_arg_text(node.args[0], names)}")
        else:
            args = [_arg_text(arg, names) for arg in node.args] + [f"{k}={_arg_text(v, names)}" for k, v in node.kwargs.items()]
            lines.append(f"%{names[node]} = {op_name(node)}({', '.join(args)}) : {_type_text(node)}")
    return lines


def op_name(node: fx.Node) -> str:
    """``add`` for ``aten.add.Tensor``."""
    packet = getattr(node.target, "overloadpacket", node.target)
    return getattr(packet, "__name__", str(packet))


def is_heavy_op(node: fx.Node) -> bool:
    """A matrix product, as the tests' own models have them."""
    return node.op == "call_function" and op_name(node) in ("mm", "addmm", "bmm")


def _stable_names(graph: fx.Graph) -> dict[fx.Node, str]:
    """Placeholders and attributes keep their names; the others are numbered by operator."""
    seen: Counter[str] = Counter()
    names = {}
    for node in graph.nodes:
        if node.op == "call_function":
            base = op_name(node)
            names[node] = f"{base}{seen[base] or ''}"
            seen[base] += 1
        else:
            names[node] = node.name
    return names


def _arg_text(arg: Any, names: Mapping[fx.Node, str]) -> str:
    if isinstance(arg, fx.Node):
        return f"%{names[arg]}"
    if isinstance(arg, (list, tuple)):
        inner = ", ".join(_arg_text(item, names) for item in arg)
        return f"[{inner}]" if isinstance(arg, list) else f"({inner})"
    return str(arg).removeprefix("torch.")


def _type_text(node: fx.Node) -> str:
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
    return type(value).__name__ if value is not None else "?"


def op_counts(gm: fx.GraphModule) -> Counter[str]:
    return Counter(op_name(node) for node in gm.graph.nodes if node.op == "call_function")


def assert_ops_changed(
    before: fx.GraphModule,
    after: fx.GraphModule,
    *,
    removed: Mapping[str, int] | None = None,
    added: Mapping[str, int] | None = None,
) -> None:
    """State in full what a pass removed and added, by operator."""
    old, new = op_counts(before), op_counts(after)
    assert (dict(old - new), dict(new - old)) == (dict(removed or {}), dict(added or {}))


def nodes_without_origin(gm: fx.GraphModule) -> list[str]:
    """Nodes of ``gm`` and its subgraphs that compute something, and do not say which line of the model they stand for."""
    missing = [node.name for node in gm.graph.nodes if node.op == "call_function" and not PLACE & node.meta.keys()]
    for child in gm.children():
        if isinstance(child, fx.GraphModule):
            missing += nodes_without_origin(child)
    return missing


class Layer(nn.Module):
    """The smallest residual branch: ``x + gate * linear(x)``."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x + gate * self.linear(x)


class TwoLayers(nn.Module):
    """Two of them, one after the other; small enough for a graph snapshot."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first, self.second = Layer(width), Layer(width)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.second(self.first(x, gate), gate)


def two_layers(dtype: torch.dtype = torch.float32, width: int = 4) -> tuple[TwoLayers, tuple[Tensor, Tensor]]:
    """The module and arguments for it, from a fixed seed."""
    torch.manual_seed(0)
    return TwoLayers(width).to(dtype).eval(), (torch.randn(3, width, dtype=dtype), torch.randn(width, dtype=dtype))
