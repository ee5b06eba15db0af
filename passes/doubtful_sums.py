"""Tell which of the sums with a scaled trunk, a difference or a broadcast branch are no residual adds after all.

    %h = mm(%x, %embed)                             a model with its preconditioning (EDM): c_skip * x + c_out * model(x), or the
    %h = add(%h, ...), %h = add(%h, ...)            skip around a level of an hourglass. The residual stream is %h; the branch
    %out = add(mul(%x, 0.5), mm(%h, %head))         around all of it would make a feature of the model's output

    %decay = exp(mm(%x, %w))                        a recurrence within an attention (gated delta rules): what scales the state
    %s = add(mul(%s, %decay), %update)              is computed from the tokens by heavy operators
    %out = add(%x, mm(%s, %proj))

Sums of the plain form, ``x + f(x)``, are not judged here.
"""

from collections import Counter
from collections.abc import Sequence

from torch import fx

from taylorseer_fx.passes.dataflow import SeedReach, ancestors
from taylorseer_fx.passes.regions import Feature


def find_doubtful(found: Sequence[Feature], reach: SeedReach) -> set[Feature]:
    """The features of ``found`` whose sum is none to forecast the branch of."""
    scaled = [feature for feature in found if feature.residual.factors]
    recurrent = {inner for inner in scaled if any(_scales_by_work_of(inner, outer, reach) for outer in found)}
    left = [feature for feature in found if feature not in recurrent]
    lengths = Counter(feature.residual.root for feature in left)
    long = {feature.residual.root: feature for feature in left if lengths[feature.residual.root] > 1}
    unusual = (feature for feature in left if not feature.residual.is_plain)
    return recurrent | {outer for outer in unusual if any(_lies_around(outer, inner, reach) for inner in long.values())}


def _scales_by_work_of(inner: Feature, outer: Feature, reach: SeedReach) -> bool:
    """Is a factor of the inner trunk computed from the outer stream by heavy operators, within the outer branch?"""
    if inner.residual.root is outer.residual.root:
        return False
    source = outer.residual.source
    is_work = any(reach.depends_through_heavy(factor, source) for factor in inner.residual.factors)
    return is_work and inner.residual.add in ancestors([outer.node])


def _lies_around(outer: Feature, inner: Feature, reach: SeedReach) -> bool:
    """Does all that the outer branch reads of its stream go through the stream of ``inner``, from its first state to its last?"""
    source, root = outer.residual.source, inner.residual.root
    if root is outer.residual.root or not reach.depends_through_heavy(root, source):
        return False
    return inner.residual.add in ancestors([outer.node]) and not _descends_beside(outer.node, source, root)


def _descends_beside(node: fx.Node, source: fx.Node, root: fx.Node) -> bool:
    """Does ``node`` depend on ``source`` other than through ``root``?"""
    seen, stack = {root}, [node]
    while stack:
        top = stack.pop()
        if top is source:
            return True
        if top not in seen:
            seen.add(top)
            stack.extend(top.all_input_nodes)
    return False
