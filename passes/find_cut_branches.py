"""Find the residual branches that a graph break cuts off from their add, to say so: they can't be forecast.

    graph 1:  %attn = ...heavy operators over %x...    returns (%x, %attn)
    break:    print(x.sum())
    graph 2:  %out = add(%x, %attn)                    the add is here, the work was there

In a graph that ends at a break, an output of the shape of an earlier state that it depends on through a heavy operator is such a
branch, unless it is a state of a stream itself.
"""

from collections.abc import Iterable

from torch import fx

from taylorseer_fx.passes.dataflow import seed_reach
from taylorseer_fx.passes.emit import outputs
from taylorseer_fx.passes.module_path import common_path
from taylorseer_fx.passes.ops import is_heavy, tensor_meta, undress
from taylorseer_fx.passes.regions import Reason, RegionSet, Rejected


def find_cut_branches(graph: fx.Graph, parameters: Iterable[fx.Node], found: RegionSet, where: str) -> tuple[Rejected, ...]:
    """The rejected branches of a graph that ends at a break; ``where`` names the line of the break."""
    weights = set(parameters)
    returned = [node for node in outputs(graph) if isinstance(node, fx.Node) and tensor_meta(node) is not None]
    adds = {feature.residual.add for feature in found.features}
    inputs = [node for node in graph.find_nodes(op="placeholder") if node not in weights and tensor_meta(node) is not None]
    states = dict.fromkeys([*inputs, *adds, *(undress(node) for node in returned)])
    reach = seed_reach(graph, states)
    in_regions = {node for region in found.regions for node in region.nodes}
    order = {node: i for i, node in enumerate(graph.nodes)}
    rejected = []
    for branch in returned:
        sources = [state for state in states if _same_shape(state, branch) and reach.depends_through_heavy(branch, state)]
        if undress(branch) in adds or not sources:
            continue
        latest = max(sources, key=order.__getitem__)
        candidates = (node for node in _ancestors(branch) if is_heavy(node) and reach.depends(node, latest))
        heavy = [node for node in candidates if node not in in_regions]
        if heavy:
            rejected.append(Rejected(common_path(heavy, [branch]), Reason.BEYOND_BREAK, where))
    return tuple(dict.fromkeys(rejected))


def _same_shape(left: fx.Node, right: fx.Node) -> bool:
    a, b = tensor_meta(left), tensor_meta(right)
    return a is not None and b is not None and a.shape == b.shape


def _ancestors(node: fx.Node) -> list[fx.Node]:
    seen: dict[fx.Node, None] = {}
    stack = [node]
    while stack:
        current = stack.pop()
        if current not in seen:
            seen[current] = None
            stack.extend(current.all_input_nodes)
    return list(seen)
