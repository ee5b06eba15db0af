"""Find the residual branches that a graph break cuts off from their add, to report them: they cannot be forecast.

    graph 1:  %attn = ...heavy operators over %x...    returns (%x, %attn)
    break:    print(x.sum())
    graph 2:  %out = add(%x, mul(%gate, %attn))        the add is here, the work was there

In a graph that ends at a break, an output of the shape of an earlier state that it depends on through a heavy operator is such a
branch, unless it is a state of a residual stream itself. In a graph that is a part of a broken model, so is an input that is
added to another or taken from it, where the sum is a state of a residual stream: others are added to it, or it is returned. Both
may be gated.
"""

from collections.abc import Iterable

from torch import fx

from taylorseer_fx.passes.dataflow import ancestors, seed_reach
from taylorseer_fx.passes.emit import outputs
from taylorseer_fx.passes.module_path import common_path, source_line
from taylorseer_fx.passes.ops import is_heavy, same_shape, tensor_meta, undress
from taylorseer_fx.passes.regions import Reason, RegionSet, Rejected
from taylorseer_fx.passes.trunks import is_sum, multiples


def find_leaving_branches(graph: fx.Graph, parameters: Iterable[fx.Node], found: RegionSet, where: str) -> tuple[Rejected, ...]:
    """The cut branches whose work is in ``graph``, which ends at a break in the line that ``where`` names."""
    weights = set(parameters)
    returned = [node for node in outputs(graph) if isinstance(node, fx.Node) and tensor_meta(node) is not None]
    adds = {feature.residual.add for feature in found.features}
    inputs = [node for node in graph.find_nodes(op="placeholder") if node not in weights and tensor_meta(node) is not None]
    states = dict.fromkeys([*inputs, *adds, *(undress(node) for node in returned)])
    reach = seed_reach(graph, states)
    in_regions = {node for region in found.regions for node in region.nodes}
    positions = {node: i for i, node in enumerate(graph.nodes)}
    rejected = []
    for branch in returned:
        sources = [state for state in states if same_shape(state, branch) and reach.depends_through_heavy(branch, state)]
        if undress(branch) in adds or not sources:
            continue
        latest = max(sources, key=positions.__getitem__)
        candidates = (node for node in ancestors([branch]) if is_heavy(node) and reach.depends(node, latest))
        heavy = [node for node in candidates if node not in in_regions]
        if heavy:
            rejected.append(Rejected(common_path(heavy, [branch]), Reason.BEYOND_BREAK, where))
    return tuple(dict.fromkeys(rejected))


def find_arriving_branches(graph: fx.Graph, parameters: Iterable[fx.Node], found: RegionSet) -> tuple[Rejected, ...]:
    """The cut branches whose residual add is in ``graph``, a part of a broken model."""
    weights = set(parameters)
    states = {multiple.node for node in outputs(graph) if isinstance(node, fx.Node) for multiple in multiples(node)}
    for feature in found.features:
        states |= {feature.residual.trunk, feature.residual.root}
    adds = {feature.residual.add for feature in found.features}
    rejected = []
    for node in graph.nodes:
        sides = node.all_input_nodes
        if node not in states or node in adds or not is_sum(node) or not same_shape(*sides):
            continue
        trunk, branch = (_ready_made(side, weights) for side in sides)
        if trunk is not None and branch is not None and trunk is not branch:
            rejected.append(Rejected(common_path([node], [node]), Reason.BEYOND_BREAK, source_line(node)))
    return tuple(dict.fromkeys(rejected))


def _ready_made(node: fx.Node, weights: set[fx.Node]) -> fx.Node | None:
    """The floating-point input that ``node`` is, behind casts, views and gates."""
    return next((multiple.node for multiple in multiples(node) if _is_floating_input(multiple.node, weights)), None)


def _is_floating_input(node: fx.Node, weights: set[fx.Node]) -> bool:
    meta = tensor_meta(node)
    return node.op == "placeholder" and node not in weights and meta is not None and meta.dtype.is_floating_point
