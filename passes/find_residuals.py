"""Find the residual adds of a graph and, behind the gate of each, the feature to forecast.

    %attn = ...heavy operators over %x...            feature
    %gated = mul(%gate, %attn)                       gate: does not depend on %x
    %out = add(%gated, %x)                           residual add, operands in either order

An add of two equally shaped tensors is residual when one operand, undressed of casts, views, slices and clamps, feeds the other
through at least one heavy operator. The operators in the branch of an earlier residual add are that one's own and do not count,
so a shift or a positional embedding that is added to a stream again and again is no stream itself. Where the trunk operand is a
residual add, the branch may also start from an earlier state of the same stream (parallel and nested blocks). No name or class
is looked at.
"""

from torch import fx

from taylorseer_fx.passes.dataflow import SeedReach
from taylorseer_fx.passes.ops import CASTS, ELEMENTWISE_DRESS, aten, dressed_input, packet, same_shape, tensor_meta, undress
from taylorseer_fx.passes.regions import Feature, ResidualAdd


def find_features(graph: fx.Graph) -> tuple[Feature, ...]:
    """Every residual add of ``graph`` with its feature, in graph order; one feature may serve two adds and is then named once."""
    candidates = [node for node in graph.nodes if _is_equal_shape_add(node)]
    reach = SeedReach(undress(side) for add in candidates for side in add.all_input_nodes)
    residuals: dict[fx.Node, ResidualAdd] = {}
    features: dict[fx.Node, Feature] = {}
    for node in graph.nodes:
        reach.visit(node)
        residual = _as_residual(node, residuals, reach) if _is_equal_shape_add(node) else None
        if residual is not None:
            reach.follow_trunk(node, residual.trunk)
            residuals[node] = residual
            feature = _peel_gates(residual, reach)
            features.setdefault(feature, Feature(feature, residual))
    return tuple(features.values())


def _is_equal_shape_add(node: fx.Node) -> bool:
    if node.op != "call_function" or packet(node) is not aten.add or len(node.all_input_nodes) != 2:
        return False
    left, right = node.all_input_nodes
    meta = tensor_meta(left)
    return meta is not None and meta.dim() > 0 and same_shape(left, right)


def _as_residual(add: fx.Node, known: dict[fx.Node, ResidualAdd], reach: SeedReach) -> ResidualAdd | None:
    left, right = add.all_input_nodes
    for trunk, branch in ((left, right), (right, left)):
        source = _stream_source(undress(trunk), branch, known, reach)
        if source is not None:
            state = undress(trunk)
            return ResidualAdd(add, state, source, branch, root=known[state].root if state in known else state)
    return None


def _stream_source(trunk: fx.Node, branch: fx.Node, known: dict[fx.Node, ResidualAdd], reach: SeedReach) -> fx.Node | None:
    """The latest state of the trunk's stream that ``branch`` depends on through a heavy operator."""
    state: fx.Node | None = trunk
    while state is not None:
        if reach.depends_through_heavy(branch, state):
            return state
        residual = known.get(state)
        state = residual.trunk if residual is not None else None
    return None


def _peel_gates(residual: ResidualAdd, reach: SeedReach) -> fx.Node:
    """Walk back from the branch through factors that do not depend on the trunk; stop where something else is computed.

    Casts and views on the way are passed; the feature is taken right behind the last factor, or behind a widening cast, so
    that its buffers have the narrow dtype.
    """
    feature = node = residual.branch
    while True:
        if (inner := _ungated(node, residual.source, reach)) is not None:
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


def _itemsize(node: fx.Node) -> int:
    meta = tensor_meta(node)
    return meta.dtype.itemsize if meta is not None else 0
