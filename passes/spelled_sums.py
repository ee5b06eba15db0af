"""Write as adds the sums that are spelled some other way, for the finder of residual adds.

    before:  %a = add(add(%x, 0), %f)                 sum([x, f])             after:  %a = add(%x, %f)
             %s = view(cat([%x, %f]), [2, ...])       stack([x, f]).sum(0)            %b = add(%x, %f)
             %b = sum(%s, [0])
             %c = add(%x, sub(%f, %x), alpha=0.3)     lerp(x, f, 0.3)                 %c = add(mul(%x, 0.7), mul(%f, 0.3))

``lerp`` with a tensor of weights is traced as ``where(|w| >= 0.5, f, x) + where(|w| >= 0.5, -(1 - w), w) * (f - x)``, which is
``(1 - w) * x + w * f``. All of it is the same algebra in the same dtype, up to rounding; tensors of whole numbers, and whatever
comes out in another dtype or shape, are left alone, as are scalar weights outside [0, 1], with which rounding errors would grow.
"""

from collections.abc import Callable
from typing import Any

from torch import fx
from torch.fx.experimental.symbolic_shapes import guard_or_false, sym_eq

from taylorseer_fx.passes.emit import Emit, cast, emitter, graph_fake_mode, standing_for
from taylorseer_fx.passes.ops import aten, packet, same_shape, tensor_meta
from taylorseer_fx.passes.taylor import accumulation_dtype
from taylorseer_fx.passes.trunks import is_sum

Rewrite = Callable[[Emit, fx.Node], fx.Node | None]


def write_sums_as_adds(graph: fx.Graph) -> None:
    """Change ``graph`` in place; what is no longer read stays for the removal of dead code."""
    mode = graph_fake_mode(graph)
    for node in list(graph.nodes):
        rewrite = _REWRITES.get(packet(node)) if node.op == "call_function" else None
        meta = tensor_meta(node)
        if rewrite is None or meta is None or not meta.dtype.is_floating_point:
            continue
        with graph.inserting_before(node), standing_for(node, __name__):
            new = rewrite(emitter(graph, mode), node)
        if new is not None and same_shape(new, node) and new.meta["val"].dtype == meta.dtype:
            if new.op == "call_function" and not new.users:
                new.meta = {**node.meta, "val": new.meta["val"]}
            node.replace_all_uses_with(new)


def _add(emit: Emit, node: fx.Node) -> fx.Node | None:
    left, right = node.args[:2]
    if isinstance(left, fx.Node) and not isinstance(right, fx.Node) and right == 0:
        _drop_zero(node, left)
    if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
        return None
    alpha = node.kwargs.get("alpha")
    if alpha is not None:
        return _lerp_of_number(emit, left, right, alpha)
    return _lerp_of_tensor(emit, left, _operands(right, aten.mul))


def _drop_zero(node: fx.Node, summand: fx.Node) -> None:
    """Drop the zero where the sum goes on. Elsewhere it stays: an output of the graph must not become one of its inputs."""
    if same_shape(summand, node) and summand.meta["val"].dtype == node.meta["val"].dtype:
        node.replace_all_uses_with(summand, delete_user_cb=is_sum)


def _lerp_of_number(emit: Emit, base: fx.Node, difference: fx.Node, alpha: Any) -> fx.Node | None:
    """``start + w * (end - start)``, or, for the larger half of the weights, ``end + (w - 1) * (end - start)``."""
    if packet(difference) is not aten.sub or difference.kwargs or not isinstance(alpha, float) or not -1 <= alpha <= 1:
        return None
    end, start = difference.args
    if not isinstance(end, fx.Node) or not isinstance(start, fx.Node) or base is not (start if alpha >= 0 else end):
        return None
    weight = alpha if alpha >= 0 else 1 + alpha
    return emit(aten.add.Tensor, emit(aten.mul.Tensor, start, 1 - weight), emit(aten.mul.Tensor, end, weight))


def _lerp_of_tensor(emit: Emit, base: Any, product: tuple[Any, ...] | None) -> fx.Node | None:
    """Rewrite the decomposition of ``lerp``, if each part is where it belongs."""
    ends = _operands(base, aten.where)
    if ends is None or product is None:
        return None
    (is_large, end, start), (coefficient, difference) = ends, product
    chosen = _operands(coefficient, aten.where)
    if _operands(difference, aten.sub) != (end, start) or chosen is None or chosen[0] is not is_large:
        return None
    _, from_end, weight = chosen
    complement = (_operands(from_end, aten.neg) or (None,))[0]
    if _operands(complement, aten.sub) != (1, weight) or not _is_half_or_more(is_large, weight):
        return None
    return emit(aten.add.Tensor, emit(aten.mul.Tensor, start, complement), emit(aten.mul.Tensor, weight, end))


def _is_half_or_more(node: Any, weight: Any) -> bool:
    compared = _operands(node, aten.ge)
    return compared is not None and compared[1] == 0.5 and _operands(compared[0], aten.abs) == (weight,)


def _operands(node: Any, operator: Any) -> tuple[Any, ...] | None:
    """The arguments of ``node``, if it is the plain operator."""
    is_it = isinstance(node, fx.Node) and node.op == "call_function" and packet(node) is operator and not node.kwargs
    return node.args if is_it else None


def _sum_of_stack(emit: Emit, node: fx.Node) -> fx.Node | None:
    parts, dim = _stacked(emit, node)
    if not parts or "dtype" in node.kwargs:
        return None
    dtype = node.meta["val"].dtype
    wide = dtype if len(parts) == 2 else accumulation_dtype(dtype)  # a sum is rounded once, however many it is of
    total = cast(emit, parts[0], wide)
    for part in parts[1:]:
        total = emit(aten.add.Tensor, total, cast(emit, part, wide))
    if packet(node) is aten.mean:
        total = emit(aten.div.Tensor, total, len(parts))
    keeps_dim = node.meta["val"].dim() > total.meta["val"].dim()
    return cast(emit, emit(aten.unsqueeze.default, total, dim) if keeps_dim else total, dtype)


def _stacked(emit: Emit, node: fx.Node) -> tuple[list[fx.Node], int]:
    """The tensors that were stacked along the one dimension that ``node`` reduces, and that dimension; none if it is no stack.

    They are joined along it with a size of 1, or along the next one, from which a view then splits it off.
    """
    source, dims = node.args[0], node.args[1] if len(node.args) > 1 else None
    if not isinstance(source, fx.Node) or not isinstance(dims, (list, tuple)) or len(dims) != 1:
        return [], 0
    sizes, cat = source.meta["val"].shape, source.args[0] if packet(source) is aten.view else source
    if not isinstance(cat, fx.Node) or packet(cat) is not aten.cat:
        return [], 0
    dim: int = dims[0] % len(sizes)  # type: ignore[operator, assignment]
    along = (cat.args[1] if len(cat.args) > 1 else 0) % cat.meta["val"].dim()
    parts: list[fx.Node] = list(cat.args[0])  # type: ignore[arg-type]
    each = (*sizes[:dim], *((1,) if cat is source else ()), *sizes[dim + 1 :])
    is_stack = along == dim and 1 < len(parts) == len(set(parts)) and _are_equal(sizes[dim], len(parts))
    if not is_stack or not all(_are_equal(part.meta["val"].shape, each) for part in parts):
        return [], 0
    return [_without_dim(emit, part, dim) for part in parts] if cat is source else parts, dim


def _without_dim(emit: Emit, part: fx.Node, dim: int) -> fx.Node:
    """The tensor that was unsqueezed to be joined."""
    is_unsqueezed = packet(part) is aten.unsqueeze and part.args[1] % part.meta["val"].dim() == dim
    return part.all_input_nodes[0] if is_unsqueezed else emit(aten.squeeze.dim, part, dim)


def _are_equal(sizes: Any, others: Any) -> bool:
    """Are the sizes equal for certain, without a guard? A size that only the data determine is no number."""
    if isinstance(others, tuple) and len(sizes) != len(others):
        return False
    return guard_or_false(sym_eq(sizes, others))


_REWRITES: dict[Any, Rewrite] = {
    aten.add: _add,
    aten.sum: _sum_of_stack,
    aten.mean: _sum_of_stack,
}
