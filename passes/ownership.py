"""Find the features that need a node, and join those that belong together because of it.

    %qkv = mm(cat(%text, %image), %w)      owners: %text_F and %image_F, which are joined: it depends on both residual streams
    %rotary = cos(%ids)                    owners: every attention, none joined: it depends on neither, and stays outside

Work that several regions share and that depends on none of their residual streams is a live-in of all, and dies with its readers
in the forecast graph.
"""

from collections.abc import Callable, Iterable, Sequence

from torch import fx

from taylorseer_fx.passes.dataflow import SeedReach, live_nodes
from taylorseer_fx.passes.regions import Feature

Features = tuple[Feature, ...]
Owners = dict[fx.Node, Features]


def find_owners(graph: fx.Graph, features: Features, roots: Iterable[fx.Node]) -> Owners:
    """The features that need each node that dies when the features are cut and ``roots`` are kept."""
    cut = (feature.node for feature in features)
    live = live_nodes(graph, cut, roots)
    bits = {feature.node: 1 << i for i, feature in enumerate(features)}
    masks: dict[fx.Node, int] = {}
    for node in reversed(graph.nodes):
        if node in bits:
            masks[node] = bits[node]
        elif node not in live and node.op not in ("placeholder", "get_attr"):
            mask = 0
            for user in node.users:
                mask |= masks.get(user, 0)
            masks[node] = mask
    unpacked = {mask: tuple(f for i, f in enumerate(features) if mask >> i & 1) for mask in set(masks.values())}
    return {node: unpacked[mask] for node, mask in masks.items() if mask}


def join_sharing(features: Features, owners: Owners, reach: SeedReach, start_of: Callable[[Feature], fx.Node]) -> list[Features]:
    """Join the features that share work which depends on where both start."""
    leader = {feature: feature for feature in features}

    def find(feature: Feature) -> Feature:
        while leader[feature] is not feature:
            feature = leader[feature]
        return feature

    for node, sharing in owners.items():
        if len(sharing) > 1:
            joint = [feature for feature in sharing if reach.depends(node, start_of(feature))]
            for feature in joint[1:]:
                leader[find(feature)] = find(joint[0])
    groups: dict[Feature, list[Feature]] = {}
    for feature in features:
        groups.setdefault(find(feature), []).append(feature)
    return [tuple(group) for group in groups.values()]


def find_bodies(groups: Sequence[Features], owners: Owners) -> list[set[fx.Node]]:
    """The nodes of each group's region: all of whose owners are in the group."""
    group_of = {feature: i for i, group in enumerate(groups) for feature in group}
    bodies: list[set[fx.Node]] = [set() for _ in groups]
    for node, sharing in owners.items():
        indices = {group_of[feature] for feature in sharing}
        if len(indices) == 1:
            bodies[indices.pop()].add(node)
    return bodies
