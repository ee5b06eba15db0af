"""Cut the graph at its features: group what only they need into regions, and report what was left out and why.

    before:  x -> norm -> q,k,v -> sdpa -> proj -> F -> mul(gate) -> add(x)
    region:       [norm,  q,k,v,   sdpa,   proj,   F]        live-ins: x, scale, shift, weights; live-out: F

Features whose regions share work on their own residual streams (joint attention of image and text) form one region with several
live-outs: they are forecast together or not at all. Work that several regions share and that depends on none of their residual
streams (rotary tables, text projections) stays outside as a live-in, and dies with its readers in the forecast graph. A residual
branch nested in another one belongs to the outer one.
"""

from collections import Counter
from collections.abc import Iterable

from torch import fx

from taylorseer_fx.passes.belonging import find_outsiders
from taylorseer_fx.passes.classify import activation_nodes, classify
from taylorseer_fx.passes.dataflow import SeedReach, descends_from, seed_reach
from taylorseer_fx.passes.find_residuals import find_features
from taylorseer_fx.passes.module_path import common_path
from taylorseer_fx.passes.ops import is_heavy, tensor_meta
from taylorseer_fx.passes.ownership import find_bodies, find_owners, join_sharing
from taylorseer_fx.passes.regions import (
    Feature,
    Positions,
    Reason,
    Region,
    RegionSet,
    Rejected,
    ResidualAdd,
    positions_of,
    region_border,
)


def find_regions(graph: fx.Graph, parameters: Iterable[fx.Node]) -> RegionSet:
    """All regions of a canonical graph. ``parameters`` are its weight placeholders, the same in every call."""
    parameters = set(parameters)
    found = find_features(graph)
    reach = seed_reach(graph, (feature.residual.source for feature in found))
    positions = positions_of(graph)
    outermost = _outermost(found, positions, reach)
    nested = {feature.residual.add for feature in found} - {feature.residual.add for feature in outermost}
    outsiders = find_outsiders(graph, outermost, parameters)
    accepted, rejected = _reject_non_floating(tuple(feature for feature in outermost if feature not in outsiders))
    while True:
        owners = find_owners(graph, accepted, roots=[feature.residual.add for feature in accepted])
        groups = join_sharing(accepted, owners, reach, lambda feature: feature.residual.source)
        bodies = find_bodies(groups, owners)
        refused = _refuse(groups, bodies, positions)
        if not refused:
            break
        inner = {
            feature
            for group, entry in refused
            if entry.reason is Reason.CYCLE
            for feature in _born_within(group, positions, reach)
        }
        nested |= {feature.residual.add for feature in inner}
        final = [(group, entry) for group, entry in refused if inner.isdisjoint(group)]
        rejected += [entry for _, entry in final]
        dropped = inner.union(feature for group, _ in final for feature in group)
        accepted = tuple(feature for feature in accepted if feature not in dropped)
    activations = activation_nodes(graph, parameters)
    regions = (_region(group, body, positions, activations, nested, reach) for group, body in zip(groups, bodies, strict=True))
    return RegionSet(
        regions=tuple(sorted(regions, key=lambda region: positions[region.features[0].node])),
        rejected=(*outsiders.values(), *rejected),
        num_residual_adds=len(found),
        num_heavy=sum(map(is_heavy, graph.nodes)),
    )


def _reject_non_floating(found: tuple[Feature, ...]) -> tuple[tuple[Feature, ...], list[Rejected]]:
    accepted, rejected = [], []
    for feature in found:
        meta = tensor_meta(feature.node)
        if meta is not None and meta.dtype.is_floating_point:
            accepted.append(feature)
        else:
            detail = f"dtype {meta.dtype}" if meta is not None else "no tensor"
            rejected.append(Rejected(common_path([feature.residual.branch], [feature.node]), Reason.NOT_FLOATING, detail))
    return tuple(accepted), rejected


def _outermost(found: tuple[Feature, ...], positions: Positions, reach: SeedReach) -> tuple[Feature, ...]:
    """Drop the features of residual adds that lie within another one's branch.

    Such an add forks off the residual stream that the outer one reads, as the attention in ``x + mlp(x + attention(x))``; or it
    is all there is of a residual stream born in the outer branch, as in ``x + g * (h + conv(h))`` with ``h = conv(x)``. A longer
    residual stream keeps its features, also one that begins in a branch (a whole model with a skip around it) or merely ends (the
    text of SD3).
    """
    lengths = Counter(feature.residual.root for feature in found)

    def lies_within(inner: ResidualAdd, outer: Feature) -> bool:
        forks_off = inner.trunk is outer.residual.trunk
        is_born_there = lengths[inner.root] == 1 and _is_born_behind(inner, outer, reach)
        return (forks_off or is_born_there) and _leads_to(inner, outer, positions)

    return tuple(inner for inner in found if not any(lies_within(inner.residual, outer) for outer in found))


def _born_within(group: tuple[Feature, ...], positions: Positions, reach: SeedReach) -> set[Feature]:
    """The features of a residual stream that lives and dies in the branch of another feature of the group, as a recurrence over
    chunks does: ``s = s @ w[t] + u[t]``.
    """

    def lies_within(inner: ResidualAdd, outer: Feature) -> bool:
        return _is_born_behind(inner, outer, reach) and _leads_to(inner, outer, positions)

    return {inner for inner in group if any(lies_within(inner.residual, outer) for outer in group)}


def _is_born_behind(inner: ResidualAdd, outer: Feature, reach: SeedReach) -> bool:
    """Does the residual stream of ``inner`` begin behind heavy work on the residual stream of ``outer``?"""
    return reach.depends_through_heavy(inner.root, outer.residual.source)


def _leads_to(inner: ResidualAdd, outer: Feature, positions: Positions) -> bool:
    """Does the feature of another add need the sum of ``inner``?"""
    if inner.add is outer.residual.add or positions[inner.add] > positions[outer.node]:
        return False
    return descends_from([outer.node], [inner.add], positions)


def _refuse(
    groups: list[tuple[Feature, ...]], bodies: list[set[fx.Node]], positions: Positions
) -> list[tuple[tuple[Feature, ...], Rejected]]:
    refused = []
    for group, body in zip(groups, bodies, strict=True):
        path = common_path(filter(is_heavy, body), [feature.node for feature in group])
        outputs = [feature.node for feature in group]
        if not any(map(is_heavy, body)):
            detail = f"feature {outputs[0].name} of {common_path(outputs, outputs)}"
            refused.append((group, Rejected(path, Reason.NEEDED_ELSEWHERE, detail)))
        elif len(group) > 1 and descends_from(region_border(body, positions)[1], outputs, positions):
            refused.append((group, Rejected(path, Reason.CYCLE, ", ".join(node.name for node in outputs))))
    return refused


def _region(
    group: tuple[Feature, ...],
    body: set[fx.Node],
    positions: Positions,
    activations: set[fx.Node],
    nested: set[fx.Node],
    reach: SeedReach,
) -> Region:
    nodes, live_ins = region_border(body, positions)
    on_stream = [node for node in nodes if any(reach.depends(node, feature.residual.source) for feature in group)]
    return Region(
        path=common_path(filter(is_heavy, on_stream), nodes),
        kind=classify(nodes, [feature.node for feature in group], activations, nested),
        features=tuple(sorted(group, key=lambda feature: positions[feature.node])),
        nodes=nodes,
        live_ins=live_ins,
    )
