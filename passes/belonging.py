"""Execute in every step the residual sums that are no attention or MLP of the model's tokens.

    %v = add(mlp(%v), %v)          %v from the time alone: a modulation network        CONDITIONING
    %s = add(conv(%s), %s)         on the sample, before the blocks                    RIM
    %x = add(attention(%x), %x)    the blocks                                          a feature
    %x = add(mm(%control), %x)     a state of another residual stream is brought in    BROUGHT_IN
    %o = add(conv(%o), %o)         on the output, behind the blocks                    RIM

A residual stream is *conditioning* where it holds no attention, is not the one with the most work, and all that its branches read
are numbers (a time, a scale, a label: inputs that meet no product before they became waves) and vectors that no residual stream
of tokens starts from. What depends on no number is the same in every step, so that its forecast is exact.

A branch is *plain* where it is no attention and has no hidden layer: it is one product, or convolutions that keep the number of
channels. A plain branch alone on its side of the blocks is left out; not so where its like comes again in its residual stream
(the convolution of every block), where it is a layer on the tokens of the blocks themselves, nor where the model has no other
branches (it consists of convolutions).
"""

from collections.abc import Iterable, Iterator

from torch import fx

from taylorseer_fx.passes.branches import Branches
from taylorseer_fx.passes.dataflow import holds, live_nodes
from taylorseer_fx.passes.module_path import common_path
from taylorseer_fx.passes.ops import aten, is_heavy, packet, tensor_meta
from taylorseer_fx.passes.regions import Feature, Reason, Rejected

Outsiders = dict[Feature, Rejected]
Left = Iterator[tuple[Feature, Reason, str]]
MOST_AXES_OF_A_VECTOR = 2  # tokens have three, or come with attention


def find_outsiders(graph: fx.Graph, found: tuple[Feature, ...], parameters: Iterable[fx.Node]) -> Outsiders:
    """The features of ``found`` that do not belong to the blocks of the model, each with the reason."""
    branches = Branches(graph, found, set(parameters))
    conditioning = list(_conditioning(branches, _numbers(graph, branches)))
    tokens = [feature for feature in found if feature not in {entry[0] for entry in conditioning}]
    left = (*conditioning, *_plain(branches, tokens))
    return {feature: _rejected(branches, feature, reason, detail) for feature, reason, detail in left}


def find_outsiders_of_stack(graph: fx.Graph, found: tuple[Feature, ...], parameters: Iterable[fx.Node]) -> Outsiders:
    """The outsiders where all sums of a stack are one feature: another residual stream may come in, a lone last sum may not."""
    parameters = set(parameters)
    outsiders = {
        f: entry for f, entry in find_outsiders(graph, found, parameters).items() if entry.reason is not Reason.BROUGHT_IN
    }
    belonging = tuple(feature for feature in found if feature not in outsiders)
    return outsiders | _lone_tails(graph, Branches(graph, belonging, parameters))


def _lone_tails(graph: fx.Graph, branches: Branches) -> Outsiders:
    """The MLPs alone in a residual stream that a product made from the end of a longer one, which no later sum reads."""
    sums = {feature.residual.add for feature in branches.found}
    live = live_nodes(graph, cut=sums)
    long = [feature for features in branches.residual_streams.values() if len(features) > 1 for feature in features]
    tails = {}
    for root, (feature, *others) in branches.residual_streams.items():
        follows = any(branches.reach.depends_through_heavy(root, end.residual.add) for end in long)
        is_last = feature.residual.add in live and not others
        if follows and is_last and not branches.attends(feature) and not holds(root, sums):
            tails[feature] = _rejected(branches, feature, Reason.RIM, "behind the blocks")
    return tails


def _rejected(branches: Branches, feature: Feature, reason: Reason, detail: str) -> Rejected:
    return Rejected(common_path(branches.work[feature], [feature.node]), reason, detail)


def _conditioning(branches: Branches, numbers: set[fx.Node]) -> Left:
    main = branches.main
    with_tokens = [
        root for root, features in branches.residual_streams.items() if root is main or any(map(branches.attends, features))
    ]
    starts = [root for root in with_tokens if not any(branches.reach.depends(root, feature.node) for feature in branches.found)]
    carried = {node for root in starts for node in branches.reads(root)} - numbers
    for root, features in branches.residual_streams.items():
        reads = {node for feature in features for node in branches.reads(feature.node)}
        is_small = all(node in numbers or (_axes(node) <= MOST_AXES_OF_A_VECTOR and node not in carried) for node in reads)
        if root not in with_tokens and is_small and reads & numbers:
            names = ", ".join(node.name for node in branches.inputs if node in reads)
            yield from ((feature, Reason.CONDITIONING, f"it reads {names}") for feature in features)


def _numbers(graph: fx.Graph, branches: Branches) -> set[fx.Node]:
    """The inputs of at most one axis, and those that become waves before they meet any product."""
    raw: dict[fx.Node, set[fx.Node]] = {node: {node} for node in branches.inputs}
    waved: set[fx.Node] = set()
    met: set[fx.Node] = set()
    for node in graph.nodes:
        above = {source for operand in node.all_input_nodes for source in raw.get(operand, ())}
        if packet(node) in (aten.sin, aten.cos):
            waved |= above
        elif is_heavy(node):
            met |= above
        elif above:
            raw[node] = above
    return {node for node in branches.inputs if _axes(node) <= 1 or (node in waved and node not in met)}


def _axes(node: fx.Node) -> int:
    meta = tensor_meta(node)
    assert meta is not None
    return meta.dim()


def _plain(branches: Branches, tokens: list[Feature]) -> Left:
    """The branches that are no attention or MLP, and stand alone at the rim or bring in what another residual stream made."""
    plain = [feature for feature in tokens if branches.is_plain(feature)]
    body = [feature for feature in tokens if feature not in plain and branches.work[feature]]
    sides = {feature: _side(branches, feature, body) for feature in plain}
    for feature, side in sides.items():
        like = [other for other in plain if _is_like(branches, feature, other)]
        near = [other for other in plain if sides[other] == side and _are_linked(branches, feature, other)]
        if side and not like and not near and (branches.convolves(feature) or _is_apart(feature, body)):
            yield feature, Reason.RIM, f"{side} the blocks"
        elif body and branches.brings_in(feature):
            yield feature, Reason.BROUGHT_IN, f"into {feature.residual.add.name}"


def _side(branches: Branches, feature: Feature, body: list[Feature]) -> str:
    """The side on which a branch stands of the blocks of its own residual stream and of the main one; empty if between them."""
    near = [other for other in body if other.residual.root in (feature.residual.root, branches.main)]
    is_before = any(branches.needs(other, feature) for other in near)
    is_behind = any(branches.needs(feature, other) for other in near)
    return "" if is_before == is_behind else "before" if is_before else "behind"


def _is_apart(feature: Feature, body: list[Feature]) -> bool:
    """Is there a product between a branch's residual stream and each of the blocks': an embedder, or a head?"""
    sums = {other.residual.add for other in body}
    roots = {other.residual.root for other in body}
    own = feature.residual
    return own.root not in roots and not holds(own.root, sums) and not any(holds(root, {own.add}) for root in roots)


def _is_like(branches: Branches, feature: Feature, other: Feature) -> bool:
    """Does the same come again in the residual stream, as in blocks?"""
    same_stream = other is not feature and other.residual.root is feature.residual.root
    return same_stream and branches.likeness(other) == branches.likeness(feature)


def _are_linked(branches: Branches, feature: Feature, other: Feature) -> bool:
    return branches.needs(feature, other) or branches.needs(other, feature)
