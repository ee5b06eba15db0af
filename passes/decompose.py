"""Write operators that hide a residual add, and what is added, with the operators that the region finder knows.

    before:  %a = residual_gate_add(%x, %f, %g)      after:  %m = mul(%g, %f)
                                                              %a = add(%x, %m)

Two tables list them: ``residual_ops`` and ``fused_layers``. Their functions are traced as the graph was, on the fake
values of the node's inputs and with Inductor's own decompositions, and take the node's place.
"""

import operator
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.fx.experimental.symbolic_shapes import guard_or_false, sym_eq
from torch.fx.traceback import preserve_node_meta

from taylorseer_fx.compat import DisableAutocast, OpOverload, physical_order, pytree, select_decomp_table
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.passes.emit import emitter, graph_fake_mode, standing_for
from taylorseer_fx.passes.fused_layers import fused_layers
from taylorseer_fx.passes.residual_ops import Decomposition, residual_ops


def decompose(graph: fx.Graph, registered: Collection[str] | None = None) -> bool:
    """Replace every operator of the tables in ``graph``; returns whether there was one.

    Raises:
        ConfigError: the decomposition of a registered operator does not fit that operator.
    """
    table = {**fused_layers(), **residual_ops(registered)}
    found = first = _in_table(graph.nodes, table)
    traces: dict[str, fx.GraphModule] = {}  # layers are alike
    with torch.no_grad(), DisableAutocast():  # what surrounds the compilation has no part in it
        for _ in table:  # a decomposition may be written with operators of the table
            inserted = []
            for node in found:
                key = _signature(node)
                if key not in traces:
                    traces[key] = _trace(node, table[_target(node)])
                inserted += _splice(node, traces[key])
            found = _in_table(inserted, table)
    return bool(first)


def _in_table(nodes: Iterable[fx.Node], table: Mapping[OpOverload, Decomposition]) -> list[fx.Node]:
    known = [node for node in nodes if node.op == "call_function" and node.target in table]
    return [node for node in known if table[_target(node)].applies(node) and _can_be_replaced(node)]


def _target(node: fx.Node) -> Any:
    return node.target


def _can_be_replaced(node: fx.Node) -> bool:
    """Is there one result, or are several read one by one, so that each can be replaced?"""
    return isinstance(node.meta["val"], Tensor) or all(user.target is operator.getitem for user in node.users)


def _sources(node: fx.Node) -> list[fx.Node]:
    """The inputs of a trace of ``node``: the graph's own symbols of sizes first, so that none is read off a tensor again."""
    inputs = node.graph.find_nodes(op="placeholder")
    return list(dict.fromkeys([*(node for node in inputs if isinstance(node.meta["val"], SymInt)), *node.all_input_nodes]))


def _signature(node: fx.Node) -> str:
    """A key: nodes with the same key have the same trace."""
    positions = {source: i for i, source in enumerate(_sources(node))}
    values = [source.meta["val"] for source in positions]
    kinds = [(v.dtype, v.device, v.shape, v.stride()) if isinstance(v, Tensor) else v for v in values]
    return str((node.target, fx.map_arg((node.args, node.kwargs), lambda arg: f"%{positions[arg]}"), kinds))


def _trace(node: fx.Node, entry: Decomposition) -> fx.GraphModule:
    """Trace what ``node`` computes from its inputs."""
    sources = _sources(node)

    def call(*values: Any) -> Any:
        env = dict(zip(sources, values, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
        try:
            result = entry.function(*args, **kwargs)
        except Exception as error:
            raise _unfit(
                node, "a function that runs on what the operator is given", f"{type(error).__name__}: {error}"
            ) from error
        return _as_returned(node, result)

    values = [source.meta["val"] for source in sources]
    with graph_fake_mode(node.graph), preserve_node_meta(False):
        traced: fx.GraphModule = make_fx(call, decomposition_table=select_decomp_table())(*values)
    unfit = [inner for inner in traced.graph.nodes if inner.op == "get_attr" or inner.target is node.target]
    if unfit:
        allowed = f"a function of tensors alone, which calls neither {node.target} nor makes or holds other tensors"
        raise _unfit(node, allowed, f"{unfit[0].op} {unfit[0].target}")
    return traced


def _as_returned(node: fx.Node, result: Any) -> Any:
    """The ``result`` of a decomposition in the operator's own memory order; it must be what the operator returns."""
    expected, structure = pytree.tree_flatten(node.meta["val"])
    results = pytree.tree_leaves(result)
    with disable_proxy_modes_tracing():  # only asking
        if len(results) != len(expected) or not all(map(_alike, results, expected)):
            raise _unfit(node, f"a function that returns {_text(expected)} here, as {node.target} does", _text(results))
        orders = list(map(_new_order, results, expected))
    return pytree.tree_unflatten(list(map(_ordered, results, orders)), structure)


def _alike(result: Any, expected: Any) -> bool:
    if not isinstance(result, Tensor) or result.dim() != expected.dim():
        return False
    same_kind = (result.dtype, result.device) == (expected.dtype, expected.device)
    return same_kind and bool(guard_or_false(sym_eq(result.shape, expected.shape)))


def _new_order(result: Tensor, expected: Tensor) -> list[int] | None:
    """The dimensions of ``expected`` from the outermost in memory to the innermost; None where ``result`` lies as it does. Views
    of what the operator returns were traced for the strides that it has.
    """
    if guard_or_false(sym_eq(result.stride(), expected.stride())):
        return None
    return list(physical_order(expected)[0])


def _ordered(result: Tensor, order: list[int] | None) -> Tensor:
    if order is None:
        return result
    back = sorted(range(len(order)), key=order.__getitem__)
    return result.permute(order).clone(memory_format=torch.contiguous_format).permute(back)


def _text(values: list[Any]) -> str:
    """A text such as ``float32[2, 3] on cpu`` for each value."""
    return ", ".join(f"{str(v.dtype)[6:]}{list(v.shape)} on {v.device}" if isinstance(v, Tensor) else repr(v) for v in values)


def _unfit(node: fx.Node, allowed: str, got: str) -> ConfigError:
    return ConfigError(f"the decomposition of {node.target}", allowed, got)


def _splice(node: fx.Node, traced: fx.GraphModule) -> list[fx.Node]:
    """Put the nodes of ``traced`` in the place of ``node``."""
    env = dict(zip(traced.graph.find_nodes(op="placeholder"), _sources(node), strict=True))
    known = set(env)
    with node.graph.inserting_before(node), standing_for(node, __name__):
        emit = emitter(node.graph, graph_fake_mode(node.graph))
        for inner in (inner for inner in traced.graph.nodes if inner.op == "call_function"):
            args, kwargs = fx.map_arg((inner.args, inner.kwargs), env.__getitem__)
            env[inner] = emit(inner.target, *args, **kwargs)
    inserted = [node for inner, node in env.items() if inner not in known]
    _replace(node, fx.map_arg(traced.graph.output_node().args[0], env.__getitem__))
    return inserted


def _replace(node: fx.Node, result: Any) -> None:
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            user.replace_all_uses_with(result[user.args[1]])
            node.graph.erase_node(user)
    node.graph.erase_node(node)
