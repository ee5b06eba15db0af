"""Find where a value is joined with others before anything else is made of it.

    %y = add(%x, mul(%gate, %F))  %joined = cat([%text, %y], 1)        %F : [1, 4096, 3072], %joined : [1, 4608, 3072]

Here %F is rows 512 to 4608 of %joined: all that reads it takes it element by element, and leads to this one ``cat``. Inductor
computes the parts of a ``cat`` in its loop, each under a mask, where they are computed for it alone; that loop reads %F, too.
"""

from dataclasses import dataclass
from typing import cast

from torch import fx

from taylorseer_fx.passes.ops import aten, same_shape
from taylorseer_fx.passes.window_rules import is_pointwise
from taylorseer_fx.passes.windows import sizes_of


@dataclass(frozen=True)
class Rows:
    """The rows of a value among those of a longer tensor: from ``start`` on, of ``length`` along ``dim``."""

    dim: int
    start: int
    length: int


def find_join(value: fx.Node, store: fx.Node) -> Rows | None:
    """The rows of ``value`` in the tensor that it is joined into; None where something but ``store`` reads it otherwise."""
    leads = _leads(value, store)
    if leads is None or len(leads) != 1:
        return None
    ((join, part),) = leads
    parts = cast(list[fx.Node], join.args[0])
    sizes = [sizes_of(node) for node in (join, *parts)]
    is_known = all(isinstance(size, int) for each in sizes for size in each) and len(set(map(len, sizes))) == 1
    if not is_known or parts.count(part) != 1 or not all(is_pointwise(node) and len(node.users) == 1 for node in parts):
        return None
    dim = cast(int, join.args[1] if len(join.args) > 1 else 0) % len(sizes[0])
    start = sum(cast(int, before[dim]) for before in sizes[1 : 1 + parts.index(part)])
    return Rows(dim, start, cast(int, sizes[0][dim]))


def _leads(value: fx.Node, store: fx.Node) -> set[tuple[fx.Node, fx.Node]] | None:
    """Each ``cat`` that ``value`` leads to element by element, and the part that it is there; None where it leads elsewhere."""
    elementwise, leads = [value], set[tuple[fx.Node, fx.Node]]()
    for node in elementwise:  # which grows
        for user in node.users:
            if user.target is aten.cat.default:
                leads.add((user, node))
            elif is_pointwise(user) and same_shape(user, value):
                elementwise += [user] if user not in elementwise else []
            elif user is not store:
                return None
    return leads
