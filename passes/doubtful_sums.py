"""Identify the sums with a scaled trunk, a difference or a broadcast branch that are no residual adds after all.

    %h = mm(%x, %embed)                             a model with its preconditioning (EDM): c_skip * x + c_out * model(x), or the
    %h = add(%h, ...), %h = add(%h, ...)            skip around a level of an hourglass. The residual stream is %h; the branch
    %out = add(mul(%x, 0.5), mm(%h, %head))         around all of it would make a feature of the model's output

    %decay = exp(mm(%x, %w))                        a recurrence within an attention (gated delta rules): what scales the state
    %s = add(mul(%s, %decay), %update)              is computed from the tokens by heavy operators
    %out = add(%x, mm(%s, %proj))

Sums of the plain form, ``x + f(x)``, are not judged here.
"""

from collections.abc import Callable, Container, Sequence
from functools import cache

from torch import fx

from taylorseer_fx.passes.dataflow import SeedReach, ancestors
from taylorseer_fx.passes.regions import Feature

Needs = Callable[[Feature], Container[fx.Node]]


def find_doubtful(found: Sequence[Feature], reach: SeedReach) -> set[Feature]:
    """The features of ``found`` whose sum is no residual add, so that its branch must not be forecast."""
    needs = cache(lambda feature: ancestors([feature.node]))
    scaled = [feature for feature in found if feature.residual.factors]
    recurrent = {inner for inner in scaled if any(_scales_by_work_of(inner, outer, reach, needs) for outer in found)}
    left = [feature for feature in found if feature not in recurrent]
    unusual = (feature for feature in left if not feature.residual.is_plain)
    return recurrent | {outer for outer in unusual if _lies_around_streams(outer, left, reach, needs)}


def _scales_by_work_of(inner: Feature, outer: Feature, reach: SeedReach, needs: Needs) -> bool:
    """Is a factor of the inner trunk computed from the outer residual stream by heavy operators, within the outer branch?"""
    if inner.residual.root is outer.residual.root:
        return False
    source = outer.residual.source
    is_work = any(reach.depends_through_heavy(factor, source) for factor in inner.residual.factors)
    return is_work and inner.residual.add in needs(outer)


def _lies_around_streams(outer: Feature, found: Sequence[Feature], reach: SeedReach, needs: Needs) -> bool:
    """Does the outer branch read its residual stream only through others that begin in it, of two sums or more?"""
    source, root = outer.residual.source, outer.residual.root
    roots = {feature.residual.root for feature in found if feature.residual.root is not root}
    born = {root for root in roots if reach.depends_through_heavy(root, source)}
    inner = [feature for feature in found if feature.residual.root in born and feature.residual.add in needs(outer)]
    return len(inner) > 1 and not _descends_beside(outer.node, source, {feature.residual.root for feature in inner})


def _descends_beside(node: fx.Node, source: fx.Node, roots: set[fx.Node]) -> bool:
    """Does ``node`` depend on ``source`` other than through ``roots``?"""
    seen, stack = set(roots), [node]
    while stack:
        top = stack.pop()
        if top is source:
            return True
        if top not in seen:
            seen.add(top)
            stack.extend(top.all_input_nodes)
    return False
