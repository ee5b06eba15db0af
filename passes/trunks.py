"""Trace a summand back to the residual stream that it carries, as a multiple of it.

    %out = add(mul(%x, 0.7), %branch)               %x, by the factor 0.7
    %out = sub(%branch, view(mul(%gate, %x)))       %x, by %gate (or %gate, by %x: which of the two is for the caller to decide)
    %out = add(%x, %branch)                         %x, by no factor

Only what has the shape of a product can be the residual stream in it, and a numerator only: a factor may be broadcast, a residual
stream is not.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from taylorseer_fx.passes.emit import Emit
from taylorseer_fx.passes.ops import aten, dressed_input, packet, same_shape, tensor_meta


@dataclass(frozen=True)
class Multiple:
    """A tensor without its dress, and the factors that it is multiplied with up to where the trace began, numbers left out.

    ``is_shared``: something else reads the tensor, in whatever dress.
    """

    node: fx.Node
    factors: tuple[fx.Node, ...]
    depth: int
    is_shared: bool


@dataclass(frozen=True)
class Summand:
    """A residual stream that a sum may carry on, and the other operand of that sum."""

    trunk: Multiple
    branch: fx.Node


def is_sum(node: fx.Node) -> bool:
    """An add of two tensors, or a difference, that has the shape of one of them."""
    if node.op != "call_function" or packet(node) not in (aten.add, aten.sub) or len(node.all_input_nodes) != 2:
        return False
    meta = tensor_meta(node)
    both_tensors = all(tensor_meta(side) is not None for side in node.all_input_nodes)
    return both_tensors and meta is not None and meta.dim() > 0 and any(same_shape(side, node) for side in node.all_input_nodes)


def summands(node: fx.Node) -> list[Summand]:
    """Everything that a sum may carry on: fewest factors first, then those that have the sum's shape without dress.

    A tensor that only this sum reads feeds no branch; it may still be a later state of a residual stream that does, if it is a
    sum itself.
    """
    left, right = node.all_input_nodes
    found = [
        Summand(multiple, branch)
        for side, branch in ((left, right), (right, left))
        if same_shape(side, node)
        for multiple in multiples(side)
        if multiple.is_shared or is_sum(multiple.node)
    ]

    def rank(summand: Summand) -> tuple[int, bool]:
        depth = summand.trunk.depth
        return depth, depth > 0 and not same_shape(summand.trunk.node, node)

    return sorted(found, key=rank)


def multiples(node: fx.Node) -> Iterator[Multiple]:
    """Everything that ``node`` is a multiple of, itself first, all without their dress."""
    inner, is_shared = _undressed(node)
    level = [Multiple(inner, (), 0, is_shared)]
    seen = {inner}
    while level:
        yield from level
        behind: dict[fx.Node, Multiple] = {}
        for multiple in level:
            for operand, factors in multiplied(multiple.node):
                inner, is_shared = _undressed(operand)
                behind.setdefault(inner, Multiple(inner, (*multiple.factors, *factors), multiple.depth + 1, is_shared))
        level = [multiple for node, multiple in behind.items() if node not in seen]
        seen |= behind.keys()


def _undressed(node: fx.Node) -> tuple[fx.Node, bool]:
    """The tensor in the dress that ``node`` is, and whether it, or some of the dress, has several readers."""
    is_shared = len(node.users) > 1
    while (inner := dressed_input(node)) is not None:
        node = inner
        is_shared |= len(node.users) > 1
    return node, is_shared


def multiplied(node: fx.Node) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
    """The operands that ``node`` is a multiple of, each with the factor, if that is a tensor."""
    if node.op != "call_function" or packet(node) not in (aten.mul, aten.div, aten.neg):
        return
    if node.kwargs.get("rounding_mode") is not None:
        return
    operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
    for operand in node.args[:1] if packet(node) is aten.div else operands:
        if isinstance(operand, fx.Node) and operands.count(operand) == 1 and same_shape(operand, node):
            yield operand, tuple(other for other in operands if other is not operand)


def without_branch(node: fx.Node, branch: fx.Node, trunk: fx.Node, emit: Emit) -> fx.Node:
    """Emit the sum with ``trunk`` in the place of its trunk, and nothing added to it or taken away."""
    if node.args[0] is not branch:
        return trunk
    alpha = node.kwargs.get("alpha", 1)
    scaled = trunk if alpha == 1 else emit(aten.mul.Tensor, trunk, alpha)
    return emit(aten.neg.default, scaled) if packet(node) is aten.sub else scaled
