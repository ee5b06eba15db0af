"""Find the residual adds of a graph and, behind the gate of each, the feature to forecast.

    %attn = ...heavy operators over %x...            feature
    %gated = mul(%gate, %attn)                       gate: does not depend on %x
    %out = add(%gated, %x)                           residual add, operands in either order

    %trunk = mul(%x, 0.7)                            the trunk may be scaled or gated, too, by what does not depend on it
    %out = sub(%trunk, %attn)                        the sum may be a difference, and the branch may be broadcast to the trunk

An add of two tensors is residual when one operand, undressed of casts, views, slices, clamps and then of factors, feeds the other
through at least one heavy operator. The operators in the branch of an earlier residual add are that one's own and do not count,
so a shift or a positional embedding that is added to a residual stream again and again is no residual stream itself. Where the
trunk operand is a residual add, the branch may also start from an earlier state of the same residual stream (parallel and nested
blocks). No name or class is looked at.
"""

from collections.abc import Iterator

from torch import fx

from taylorseer_fx.passes.dataflow import SeedReach
from taylorseer_fx.passes.doubtful_sums import find_doubtful
from taylorseer_fx.passes.ops import CASTS, ELEMENTWISE_DRESS, aten, dressed_input, packet, same_shape, tensor_meta, undress
from taylorseer_fx.passes.regions import Feature, ResidualAdd
from taylorseer_fx.passes.trunks import Summand, is_sum, multiples, multiplied, summands

Known = dict[fx.Node, ResidualAdd]


def find_features(graph: fx.Graph) -> tuple[Feature, ...]:
    """Every residual add of ``graph`` with its feature, in graph order; one feature may serve two adds and is then named once."""
    features: dict[fx.Node, Feature] = {}
    for feature in find_residuals(graph):
        features.setdefault(feature.node, feature)
    return tuple(features.values())


def find_residuals(graph: fx.Graph) -> tuple[Feature, ...]:
    """Every residual add with its feature: one that serves two adds is there twice."""
    candidates = {node: summands(node) for node in graph.nodes if is_sum(node)}
    reach = SeedReach(summand.trunk.node for options in candidates.values() for summand in options)
    residuals: Known = {}
    found: list[Feature] = []
    for node in graph.nodes:
        reach.visit(node)
        residual = _as_residual(node, candidates[node], residuals, reach) if node in candidates else None
        if residual is not None:
            reach.follow_trunk(node, residual.trunk)
            residuals[node] = residual
            found.append(Feature(_peel_gates(residual, reach), residual))
    doubtful = find_doubtful(found, reach)
    return tuple(feature for feature in found if feature not in doubtful)


def _as_residual(add: fx.Node, options: list[Summand], known: Known, reach: SeedReach) -> ResidualAdd | None:
    """The residual add with the nearest trunk that the sum may have; of two factors of a product, the known residual stream."""
    ranked = sorted(options, key=lambda option: (option.trunk.depth, option.trunk.depth > 0 and option.trunk.node not in known))
    checked = (_checked(add, option, known, reach) for option in ranked)
    residual = next((residual for residual in checked if residual is not None), None)
    return None if residual is not None and _returns_to_trunk(add, residual.trunk) else residual


def _checked(add: fx.Node, option: Summand, known: Known, reach: SeedReach) -> ResidualAdd | None:
    state, factors = option.trunk.node, option.trunk.factors
    before = _known_behind(state, known, reach)
    root = state if before is None else known[before].root
    source = _stream_source(state, option.branch, known, reach)
    if source is None or any(reach.depends(factor, root) for factor in factors):
        return None
    is_plain = packet(add) is aten.add and option.trunk.depth == 0 and same_shape(option.branch, add)
    return ResidualAdd(add, state, source, option.branch, root, factors, is_plain)


def _known_behind(state: fx.Node, known: Known, reach: SeedReach) -> fx.Node | None:
    """The residual add that ``state`` is, or is a multiple of, by factors that do not depend on its residual stream."""
    for multiple in multiples(state):
        residual = known.get(multiple.node)
        if residual is not None and not any(reach.depends(factor, residual.root) for factor in multiple.factors):
            return multiple.node
    return None


def _states(state: fx.Node, known: Known, reach: SeedReach) -> Iterator[fx.Node]:
    """``state`` and all earlier states of its residual stream, back to the first."""
    while True:
        yield state
        before = _known_behind(state, known, reach)
        if before is None:
            return
        state = known[before].trunk if before is state else before


def _stream_source(trunk: fx.Node, branch: fx.Node, known: Known, reach: SeedReach) -> fx.Node | None:
    """The latest state of the trunk's residual stream that ``branch`` depends on through a heavy operator."""
    return next((state for state in _states(trunk, known, reach) if reach.depends_through_heavy(branch, state)), None)


def _returns_to_trunk(node: fx.Node, trunk: fx.Node) -> bool:
    """Is a difference, scaled or not, added to the very trunk that it is taken from: ``x + g * (f - x)``? The sum is that one."""
    if packet(node) is not aten.sub:
        return False
    while len(node.users) == 1:
        (user,) = node.users
        if is_sum(user):
            return any(undress(side) is trunk for side in user.all_input_nodes if side is not node)
        if dressed_input(user) is not node and all(operand is not node for operand, _ in multiplied(user)):
            return False
        node = user
    return False


def _peel_gates(residual: ResidualAdd, reach: SeedReach) -> fx.Node:
    """Walk back from the branch through factors that do not depend on the trunk; stop where something else is computed.

    Casts and views on the way are passed; the feature is taken right behind the last factor, or behind a widening cast, so
    that its buffers have the narrow dtype.
    """
    feature = node = residual.branch
    while True:
        inner = _ungated(node, residual.source, reach) or _without_trunk(node, residual, reach)
        if inner is not None:
            feature = node = inner
        elif (inner := dressed_input(node, ELEMENTWISE_DRESS)) is not None:
            if packet(node) in CASTS and feature is node and _itemsize(inner) <= _itemsize(node):
                feature = inner
            node = inner
        else:
            return feature


def _ungated(node: fx.Node, source: fx.Node, reach: SeedReach) -> fx.Node | None:
    """The one operand of a product (or the numerator of a quotient) that depends on the trunk, if the other does not."""
    if node.op != "call_function" or packet(node) not in (aten.mul, aten.div, aten.neg):
        return None
    dependent = [arg for arg in node.args if isinstance(arg, fx.Node) and reach.depends(arg, source)]
    if len(dependent) != 1 or (packet(node) is aten.div and dependent[0] is not node.args[0]):
        return None
    if node.kwargs.get("rounding_mode") is not None:
        return None
    return dependent[0]


def _without_trunk(node: fx.Node, residual: ResidualAdd, reach: SeedReach) -> fx.Node | None:
    """``f`` of ``f - x`` in ``x + g * (f - x)``: the trunk, which the branch holds as well, is computed in every step."""
    if not is_sum(node):
        return None
    for option in summands(node):
        if option.trunk.node is residual.trunk and not any(reach.depends(f, residual.source) for f in option.trunk.factors):
            return option.branch if reach.depends_through_heavy(option.branch, residual.source) else None
    return None


def _itemsize(node: fx.Node) -> int:
    meta = tensor_meta(node)
    return meta.dtype.itemsize if meta is not None else 0
