"""Find the part of each feature that a forecast step reads; only that part is stored.

    %y = add(cat(%text, %image), mul(%gate, %F))        the last block: only %y[:, 512:] is read
    %F : [1, 4608, 3072]                                stored: %F[:, 512:]
    %text_F                                             what is added to a residual stream that ends unread: nothing is stored

In FLUX that is all of the text's residual stream: its features are 11 % of the memory.
"""

from dataclasses import replace

from torch import SymInt, fx

from taylorseer_fx.passes.demands import Demands, demanded
from taylorseer_fx.passes.emit import Emit, adds_all_or_nothing, emit_window, emitter, graph_fake_mode, standing_for
from taylorseer_fx.passes.ops import aten, dressed_input, packet
from taylorseer_fx.passes.regions import Feature, Region, RegionSet, positions_of, region_border
from taylorseer_fx.passes.window_rules import rule_of
from taylorseer_fx.passes.windows import Window, hull, is_whole, normalized, sizes_of, whole


@adds_all_or_nothing
def find_stored(graph: fx.Graph, found: RegionSet) -> RegionSet:
    """Set the stored window of each feature of ``found``; a base that is read in part is added to ``graph`` as that part."""
    inside = {node for region in found.regions for node in region.nodes}
    demands = demanded(graph, {feature.node for feature in found.features}, inside)
    return replace(found, regions=tuple(_region_with_stored(graph, region, demands) for region in found.regions))


def _region_with_stored(graph: fx.Graph, region: Region, demands: Demands) -> Region:
    features = tuple(_with_stored(graph, region, feature, demands) for feature in region.features)
    if all(new.base is old.base for new, old in zip(features, region.features, strict=True)):
        return replace(region, features=features)
    nodes, live_ins = region_border(set(region.nodes), positions_of(graph), [feature.base for feature in features])
    return replace(region, features=features, nodes=nodes, live_ins=live_ins)


def _with_stored(graph: fx.Graph, region: Region, feature: Feature, demands: Demands) -> Feature:
    sizes = sizes_of(feature.node)
    if feature.node not in demands:
        is_symbolic = any(isinstance(size, SymInt) for size in sizes)
        if is_symbolic and region.live_in_like(feature) is None:  # then the zeros that stand for it could not be made
            return replace(feature, stored_window=whole(feature.node))
        return replace(feature, stored_window=None, base=None)
    window = normalized(hull(demands[feature.node]), sizes)
    if feature.base is None or is_whole(window):
        return replace(feature, stored_window=window)
    with graph.inserting_before(feature.node), standing_for(feature.node, __name__):
        return replace(feature, stored_window=window, base=_part(emitter(graph, graph_fake_mode(graph)), feature.base, window))


def _part(emit: Emit, node: fx.Node, window: Window) -> fx.Node:
    """``node`` in ``window``, cut before it is put together: of a concatenation often just one of its parts."""
    rule = rule_of(node) if packet(node) is aten.cat or dressed_input(node) is not None else None
    needs = rule.needs(node, window) if rule is not None and not is_whole(window) else None
    if rule is None or needs is None:
        return emit_window(emit, node, window)
    return rule.build(emit, node, window, [_part(emit, source, part) for source, part in needs])
