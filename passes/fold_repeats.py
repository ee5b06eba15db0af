"""Write what every block does once, and call it: Inductor then compiles one block of a forecast step in place of all.

    before:  %x1 = add(mul(%g1, ...%b1), %x0)  %x2 = add(mul(%g2, ...%b2), %x1)  ...                      a node for each op
    after:   %x1 = invoke_subgraph(%block, "block", %x0, %b1, ...)  %x2 = invoke_subgraph(%block, "block", %x1, %b2, ...)

The stream of a forecast step is a chain: a feature's polynomial joins it at one node. What is first needed to reach that node,
its gates among it, is a link. Links of a few features in a row (as many as leaves least to compile) that are the same but for
their inputs become calls. A graph of symbolic shapes stays as it is: Inductor takes no such operands. So does one for a GPU: a
call costs the host 20 to 50 us, which a forecast step has to spare on a CPU alone.

Compiling the forecast step of DiT-XL/2, two threads (AMD EPYC, torch 2.13): 9.3 s before and 5.2 s after.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor.inductor_prims import force_stride_order

from taylorseer_fx.passes.emit import attribute, graph_module, outputs, placeholder
from taylorseer_fx.passes.ops import tensor_meta

LONGEST = 6  # features of a link: attention, cross-attention and MLP of two streams
FEWEST_CALLS = 3
COST_OF_A_CALL = 4  # in nodes that need not be compiled; a call takes some microseconds in every step

invoke_subgraph = torch.ops.higher_order.invoke_subgraph


@dataclass(frozen=True)
class _Link:
    """Nodes in order; what they take from outside and what is read of them there, in order of appearance.

    ``key``: equal for links that are the same but for their inputs. ``is_closed``: tensors go in and out, and none that comes out
    shares memory with another, which Inductor would not know.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    results: tuple[fx.Node, ...]
    key: Any
    is_closed: bool


def fold_repeats(gm: fx.GraphModule, features: Sequence[Sequence[fx.Node]]) -> fx.GraphModule:
    """A new graph with equal links of the chain replaced by calls, or ``gm`` where there are too few.

    Args:
        gm: graph of a forecast step; ``meta["val"]`` on every node.
        features: the buffers of each feature, inputs of ``gm``.
    """
    if not _is_plain(gm.graph):
        return gm
    links = _merged([_link(nodes) for nodes in _chain(gm.graph, features)])
    repeated = _repeated(links)
    return _folded(gm, links, repeated) if repeated else gm


def _is_plain(graph: fx.Graph) -> bool:
    """Static, on a CPU, and without effects or bodies of its own."""
    for node in graph.nodes:
        meta = tensor_meta(node)
        if meta is not None and not (_is_static(meta) and meta.device.type == "cpu"):
            return False
        if node.op == "call_function" and (isinstance(node.target, torch._ops.HigherOrderOperator) or node.is_impure()):
            return False
    return True


def _is_static(value: Tensor) -> bool:
    return all(isinstance(size, int) for size in (*value.shape, *value.stride()))


def _chain(graph: fx.Graph, features: Sequence[Sequence[fx.Node]]) -> list[list[fx.Node]]:
    """The nodes that are first needed for the first feature's joining another one, then for the next one's, and so on."""
    joins = _joins(graph, features)
    owner: dict[fx.Node, int] = {}
    for number, join in enumerate(joins):
        pending = [join]
        while pending:
            node = pending.pop()
            if node.op == "call_function" and node not in owner:
                owner[node] = number
                pending += node.all_input_nodes
    chain: list[list[fx.Node]] = [[] for _ in joins]
    for node in graph.nodes:
        if node in owner:
            chain[owner[node]].append(node)
    return chain


def _joins(graph: fx.Graph, features: Sequence[Sequence[fx.Node]]) -> list[fx.Node]:
    """For each feature the first node that depends on it and on another, in order."""
    seen = {buffer: 1 << i for i, buffers in enumerate(features) for buffer in buffers}
    joined = 0
    joins = []
    for node in graph.nodes:
        mask = seen.get(node, 0)
        for argument in node.all_input_nodes:
            mask |= seen[argument]
        seen[node] = mask
        if mask & ~joined and mask & (mask - 1) and node.op == "call_function":
            joins.append(node)
            joined |= mask
    return joins


def _link(nodes: Sequence[fx.Node]) -> _Link:
    inside = set(nodes)
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
    results = tuple(node for node in nodes if any(user not in inside for user in node.users))
    key = (tuple(steps), tuple(map(_layout, inputs)), tuple(place[node] for node in results))
    return _Link(tuple(nodes), tuple(inputs), results, key, _is_closed(inside, inputs, results))


class _Place(str):
    """Of a node, in place of its name."""

    __repr__ = str.__str__


def _layout(node: fx.Node) -> Any:
    value = tensor_meta(node)
    return None if value is None else (value.shape, value.stride(), value.dtype, value.device)


def _is_closed(inside: set[fx.Node], inputs: Sequence[fx.Node], results: Sequence[fx.Node]) -> bool:
    bases = [_base(node) for node in results]
    return (
        all(isinstance(node.meta.get("val"), Tensor) for node in (*inputs, *results))
        and len(set(bases)) == len(bases)
        and inside.issuperset(bases)
    )


def _base(node: fx.Node) -> fx.Node:
    """What ``node`` may be a view of."""
    while getattr(node.target, "is_view", False) or node.target in (force_stride_order, getitem):
        node = node.all_input_nodes[0]
    return node


def _merged(links: Sequence[_Link]) -> list[_Link]:
    """Neighbours joined, as many to one as leaves least to compile; what is left over at the ends stays alone."""
    kinds = [link.key for link in links]
    sizes = {link.key: len(link.nodes) for link in links}

    def cost(division: Sequence[range]) -> int:
        """Nodes to compile, and the calls, as if groups of equal links were the same in what goes on inside them, too."""
        counts = Counter(tuple(kinds[i] for i in group) for group in division)
        groups = ((sum(map(sizes.__getitem__, group)), count) for group, count in counts.items())
        return sum(size + COST_OF_A_CALL * count if count >= FEWEST_CALLS else size * count for size, count in groups)

    divisions = (_division(len(links), length, first) for length in range(1, LONGEST + 1) for first in range(length))
    return [_link([node for i in group for node in links[i].nodes]) for group in min(divisions, key=cost)]


def _division(count: int, length: int, first: int) -> list[range]:
    """Of ``count`` places into groups of ``length`` from ``first`` on; those before and after alone."""
    groups = [range(i, i + length) for i in range(first, count - length + 1, length)]
    last = groups[-1].stop if groups else 0
    before = range(groups[0].start if groups else 0)
    return [*(range(i, i + 1) for i in before), *groups, *(range(i, i + 1) for i in range(last, count))]


def _repeated(links: Sequence[_Link]) -> set[Any]:
    counts = Counter(link.key for link in links if link.is_closed)
    return {key for key, count in counts.items() if count >= FEWEST_CALLS}


def _folded(gm: fx.GraphModule, links: Sequence[_Link], repeated: set[Any]) -> fx.GraphModule:
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
            attributes[name] = _body(link)
            bodies[link.key] = graph.get_attr(name)
        _call(graph, bodies[link.key], link, env)
    copy(node for node in gm.graph.nodes if node.op == "call_function" and node not in in_links)
    graph.output(fx.map_arg(outputs(gm.graph), env.__getitem__)).meta.update(gm.graph.output_node().meta)
    return graph_module(attributes, graph, type(gm).__name__)


def _body(link: _Link) -> fx.GraphModule:
    graph = fx.Graph()
    env = {node: placeholder(graph, f"x{i}", node.meta["val"]) for i, node in enumerate(link.inputs)}
    for node in link.nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(tuple(env[node] for node in link.results))
    return graph_module({}, graph, "Block")


def _call(graph: fx.Graph, body: fx.Node, link: _Link, env: dict[fx.Node, fx.Node]) -> None:
    call = graph.call_function(invoke_subgraph, (body, str(body.target), *(env[node] for node in link.inputs)))
    call.meta["val"] = tuple(node.meta["val"] for node in link.results)
    for i, node in enumerate(link.results):
        env[node] = graph.call_function(getitem, (call, i))
        env[node].meta["val"] = node.meta["val"]
