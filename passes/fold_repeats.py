"""Outline repeated blocks into one subgraph that is called, so that Inductor compiles one block of a forecast step, not all.

    before:  %x1 = add(mul(%g1, ...%b1), %x0)  %x2 = add(mul(%g2, ...%b2), %x1)  ...                      a node for each op
    after:   %x1 = invoke_subgraph(%block, "block", %x0, %b1, ...)  %x2 = invoke_subgraph(%block, "block", %x1, %b2, ...)

The residual stream of a forecast step is a chain: a feature's polynomial joins it at one node. What is first needed to reach that
node, its gates among it, is a link; what the whole model shares, the embedding of the time say, is none. Links of a few features
in a row (as many as leaves least to compile) that are the same but for their inputs become calls. So that the first is like the
others, the residual stream before it is laid out in memory as it is between them. A graph of symbolic shapes stays as it is:
Inductor takes no such operands. So does one for a GPU: a call costs the host 20 to 50 us, which a forecast step has to spare on a
CPU alone.

Compiling the forecast step of DiT-XL/2, two threads (AMD EPYC, torch 2.13): 9.3 s before and 4.7 to 5.7 s after.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem, or_
from typing import Any

import torch
from torch import Tensor, fx

from taylorseer_fx.compat import HigherOrderOperator, force_stride_order
from taylorseer_fx.passes.emit import (
    attribute,
    emit_as_it_is,
    emitter,
    graph_fake_mode,
    graph_module,
    outputs,
    placeholder,
    standing_for,
)
from taylorseer_fx.passes.ops import aten, tensor_meta

LONGEST = 6  # features of a link: attention, cross-attention and MLP of two residual streams
FEWEST_CALLS = 3
COST_OF_A_CALL = 4  # in nodes that need not be compiled; a call takes some microseconds in every step

invoke_subgraph = torch.ops.higher_order.invoke_subgraph


@dataclass(frozen=True)
class _Link:
    """A link of the chain: its nodes in order, their inputs in order of appearance, and the places of those read outside.

    ``key``: equal for links that are the same but for their inputs, and for what is read of them.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    results: frozenset[int]
    key: Any


def fold_repeats(gm: fx.GraphModule, features: Sequence[Sequence[fx.Node]]) -> fx.GraphModule:
    """A new graph with equal links of the chain replaced by calls, or ``gm`` where there are too few.

    Args:
        gm: graph of a forecast step; ``meta["val"]`` on every node.
        features: the buffers of each feature, inputs of ``gm``.
    """
    if not _is_plain(gm.graph):
        return gm
    graph, needs = _with_stream_laid_out(gm.graph, features)
    links = _merged([_link(nodes) for nodes in _chain(graph, needs)])
    repeated = _repeated(links)
    return _folded(graph_module(gm, graph, type(gm).__name__), links, repeated) if repeated else gm


def _is_plain(graph: fx.Graph) -> bool:
    """Is the graph static, on a CPU, and without effects or subgraphs of its own?"""
    for node in graph.nodes:
        meta = tensor_meta(node)
        if meta is not None and not (_is_static(meta) and meta.device.type == "cpu"):
            return False
        if node.op == "call_function" and (isinstance(node.target, HigherOrderOperator) or node.is_impure()):
            return False
    return True


def _is_static(value: Tensor) -> bool:
    return all(isinstance(size, int) for size in (*value.shape, *value.stride()))


def _with_stream_laid_out(original: fx.Graph, features: Sequence[Sequence[fx.Node]]) -> tuple[fx.Graph, Mapping[fx.Node, int]]:
    """A copy of the graph, in which the residual stream lies in memory before any feature as after one; and its ``_needs``."""
    graph, env = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(original, env)).meta.update(original.output_node().meta)
    needs = _needs(graph, [[env[buffer] for buffer in buffers] for buffers in features])
    before, joins = _joins(graph, needs)
    if before is not None and _layout(before) != _layout(joins[0]):
        with graph.inserting_before(joins[0]), standing_for(joins[0], __name__):
            laid_out = emitter(graph, graph_fake_mode(graph))(force_stride_order, before, joins[0].meta["val"].stride())
        joins[0].replace_input_with(before, laid_out)
        needs[laid_out] = 0
    return graph, needs


def _needs(graph: fx.Graph, features: Sequence[Sequence[fx.Node]]) -> dict[fx.Node, int]:
    """A bit set per node: the features that it depends on."""
    needs = {buffer: 1 << i for i, buffers in enumerate(features) for buffer in buffers}
    for node in graph.nodes:
        needs[node] = reduce(or_, (needs[argument] for argument in node.all_input_nodes), needs.get(node, 0))
    return needs


def _chain(graph: fx.Graph, needs: Mapping[fx.Node, int]) -> list[list[fx.Node]]:
    """The nodes that are needed for the residual stream before any feature and for what the whole model shares; then those that
    are first needed for the first feature's joining the residual stream, then for the next one's, and so on.
    """
    before, joins = _joins(graph, needs)
    owner = _first_needed([[], *([join] for join in joins)])
    shared = [node for node in owner if not needs[node] and _is_shared({owner[user] for user in node.users if user in owner})]
    start = [before] if before is not None else []
    owner = _first_needed([[*start, *shared], *([join] for join in joins)])
    chain: list[list[fx.Node]] = [[] for _ in range(len(joins) + 1)]
    for node in graph.nodes:
        if node in owner:
            chain[owner[node]].append(node)
    return [nodes for nodes in chain if nodes]


def _is_shared(users: set[int]) -> bool:
    """Are these users spread over more links than one call could hold?"""
    return len(users) >= FEWEST_CALLS and max(users) - min(users) >= LONGEST


def _first_needed(targets: Sequence[Sequence[fx.Node]]) -> dict[fx.Node, int]:
    """The ops that the targets need, each with the number of the first target that needs it."""
    owner: dict[fx.Node, int] = {}
    for number, nodes in enumerate(targets):
        pending = list(nodes)
        while pending:
            node = pending.pop()
            if node.op == "call_function" and node not in owner:
                owner[node] = number
                pending += node.all_input_nodes
    return owner


def _joins(graph: fx.Graph, needs: Mapping[fx.Node, int]) -> tuple[fx.Node | None, list[fx.Node]]:
    """The residual stream before any feature, where it is found, and for each feature the first node that depends on it and on
    what came before it, in order.
    """
    joined = 0
    joins = []
    for node in graph.nodes:
        mask = needs[node]
        if mask & ~joined and mask & (mask - 1) and node.op == "call_function":
            joins.append(node)
            joined |= mask
    before, first = _first_join(joins[0], needs) if joins else (None, None)
    return before, joins if first is None else [first, *joins]


def _first_join(second: fx.Node, needs: Mapping[fx.Node, int]) -> tuple[fx.Node | None, fx.Node | None]:
    """The first feature joins the residual stream itself: that, and their sum, which the second one joins in ``second``."""
    if len(second.all_input_nodes) != 2:
        return None, None
    join = min(second.all_input_nodes, key=lambda node: needs[node] & -needs[node])  # features are in order
    before = [node for node in join.all_input_nodes if not needs[node] and _is_like(node, join)]
    if join.op != "call_function" or len(before) != 1 or not _is_like(join, second):
        return None, None
    return before[0], join


def _is_like(node: fx.Node, other: fx.Node) -> bool:
    """Are both of one shape, dtype and device, however they lie in memory?"""
    a, b = tensor_meta(node), tensor_meta(other)
    return a is not None and b is not None and (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def _link(nodes: Sequence[fx.Node]) -> _Link:
    place: dict[fx.Node, str] = {}
    inputs: list[fx.Node] = []
    steps: list[Any] = []
    for node in nodes:
        for argument in node.all_input_nodes:
            if argument not in place:
                place[argument] = f"input {len(inputs)}"
                inputs.append(argument)
        place[node] = f"node {len(steps)}"
        steps.append((node.target, repr(fx.map_arg((node.args, node.kwargs), lambda arg: _Place(place[arg])))))
    results = frozenset(i for i, node in enumerate(nodes) if any(user not in place for user in node.users))
    return _Link(tuple(nodes), tuple(inputs), results, (tuple(steps), tuple(map(_layout, inputs))))


class _Place(str):
    """Stands for a node in a key, in place of its name."""

    __repr__ = str.__str__


def _layout(node: fx.Node) -> Any:
    value = tensor_meta(node)
    return None if value is None else (value.shape, value.stride(), value.dtype, value.device)


# Operators whose result shares memory with their input, though the schema does not declare it.
_VIEWS_BY_ANOTHER_NAME = (force_stride_order, getitem, aten._unsafe_view.default)


def _base(node: fx.Node) -> fx.Node:
    """The tensor that ``node`` may be a view of."""
    while getattr(node.target, "is_view", False) or node.target in _VIEWS_BY_ANOTHER_NAME:
        node = node.all_input_nodes[0]
    return node


def _merged(links: Sequence[_Link]) -> list[_Link]:
    """Join neighbouring links, as many to one as leaves least to compile; those left over at the ends stay alone."""
    kinds = [link.key for link in links]
    sizes = {link.key: len(link.nodes) for link in links}

    def cost(division: Sequence[range]) -> int:
        """The nodes to compile, and the calls, as if groups of equal links were equal inside them, too."""
        counts = Counter(tuple(kinds[i] for i in group) for group in division)
        groups = ((sum(map(sizes.__getitem__, group)), count) for group, count in counts.items())
        return sum(size + COST_OF_A_CALL * count if count >= FEWEST_CALLS else size * count for size, count in groups)

    divisions = (_division(len(links), length, first) for length in range(1, LONGEST + 1) for first in range(length))
    return [_link([node for i in group for node in links[i].nodes]) for group in min(divisions, key=cost)]


def _division(count: int, length: int, first: int) -> list[range]:
    """Divide ``count`` places into groups of ``length`` from ``first`` on; those before and after stay alone."""
    groups = [range(i, i + length) for i in range(first, count - length + 1, length)]
    last = groups[-1].stop if groups else 0
    before = range(groups[0].start if groups else 0)
    return [*(range(i, i + 1) for i in before), *groups, *(range(i, i + 1) for i in range(last, count))]


def _repeated(links: Sequence[_Link]) -> dict[Any, list[int]]:
    """The kinds of links that become calls, with the results of each: all that is read of any of them, in order."""
    groups = defaultdict[Any, list[_Link]](list)
    for link in links:
        groups[link.key].append(link)
    results = {key: sorted(frozenset[int]().union(*(link.results for link in group))) for key, group in groups.items()}
    return {
        key: results[key]
        for key, group in groups.items()
        if len(group) >= FEWEST_CALLS and all(_is_closed(link, results[key]) for link in group)
    }


def _is_closed(link: _Link, results: Sequence[int]) -> bool:
    """Do only tensors go in and out, none of which shares memory with another result, as Inductor would not know?"""
    read = [link.nodes[i] for i in results]
    bases = [_base(node) for node in read]
    return (
        all(isinstance(node.meta.get("val"), Tensor) for node in (*link.inputs, *read))
        and len(set(bases)) == len(bases)
        and set(link.nodes).issuperset(bases)
    )


def _folded(gm: fx.GraphModule, links: Sequence[_Link], repeated: dict[Any, list[int]]) -> fx.GraphModule:
    graph, attributes, env = fx.Graph(), dict[str, Any](), dict[fx.Node, fx.Node]()
    bodies: dict[Any, fx.Node] = {}

    def copy(nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            if node.op == "get_attr":
                attributes[str(node.target)] = attribute(gm, node)
            env[node] = graph.node_copy(node, env.__getitem__)

    in_links = {node for link in links for node in link.nodes}
    copy(node for node in gm.graph.nodes if node.op in ("placeholder", "get_attr"))
    for link in links:
        if link.key not in repeated:
            copy(link.nodes)
            continue
        if link.key not in bodies:
            name = f"block{len(bodies)}"
            attributes[name] = _body(link, repeated[link.key])
            bodies[link.key] = graph.get_attr(name)
        _call(graph, bodies[link.key], link, repeated[link.key], env)
    copy(node for node in gm.graph.nodes if node.op == "call_function" and node not in in_links)
    graph.output(fx.map_arg(outputs(gm.graph), env.__getitem__)).meta.update(gm.graph.output_node().meta)
    return graph_module(attributes, graph, type(gm).__name__)


def _body(link: _Link, results: Sequence[int]) -> fx.GraphModule:
    graph = fx.Graph()
    env = {node: placeholder(graph, f"x{i}", node.meta["val"]) for i, node in enumerate(link.inputs)}
    for node in link.nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(tuple(env[link.nodes[i]] for i in results))
    return graph_module({}, graph, "Block")


def _call(graph: fx.Graph, body: fx.Node, link: _Link, results: Sequence[int], env: dict[fx.Node, fx.Node]) -> None:
    values = tuple(link.nodes[i].meta["val"] for i in results)
    with standing_for(link.nodes[results[0]], __name__):
        call = emit_as_it_is(graph, invoke_subgraph, (body, str(body.target), *(env[node] for node in link.inputs)), values)
    for place, i in enumerate(results):
        if i in link.results:
            with standing_for(link.nodes[i], __name__):
                env[link.nodes[i]] = emit_as_it_is(graph, getitem, (call, place), values[place])
