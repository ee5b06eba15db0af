"""The vocabulary of the passes: which ATen operators do the work, and which only change how a tensor looks.

One place, so that a new contraction (a quantised matmul, a fused attention) is taught to every pass at once.
"""

import operator
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import guard_or_false, sym_eq

from taylorseer_fx.compat import HigherOrderOperator, OpOverload

aten = torch.ops.aten
prims = torch.ops.prims


# Overloads of one operator differ in their arguments, and so in what they do: ``view(shape)`` and ``view(dtype)``. These are the
# ones that the passes know; a pass that names an operator means no other. An operator that is not here is known in all of them.
OVERLOADS: dict[Any, frozenset[str]] = {
    **dict.fromkeys((aten.add, aten.sub, aten.mul, aten.div, aten.ge), frozenset({"Tensor", "Scalar"})),
    **dict.fromkeys((aten.slice, aten.index), frozenset({"Tensor"})),
    **dict.fromkeys((aten.select, aten.transpose, aten.unbind), frozenset({"int"})),
    aten.squeeze: frozenset({"default", "dim", "dims"}),
    aten.split: frozenset({"Tensor", "sizes"}),
    aten.where: frozenset({"self"}),
    aten.mean: frozenset({"default", "dim"}),
    aten.sum: frozenset({"default", "dim_IntList"}),
    aten.var_mean: frozenset({"correction"}),
    **dict.fromkeys((aten.mm, aten.bmm, aten.addmm, aten.baddbmm), frozenset({"default", "dtype"})),
    **dict.fromkeys(
        (aten.neg, aten.view, aten.clamp, aten.clamp_min, aten.clamp_max, aten.sin, aten.cos, aten.copy_),
        frozenset({"default"}),
    ),
}


def any_overload(node: fx.Node) -> Any:
    """The operator without its overload (``aten.add`` for ``aten.add.Tensor``), or the bare target."""
    return getattr(node.target, "overloadpacket", node.target)


def packet(node: fx.Node) -> Any:
    """The same as ``any_overload``, but an overload with arguments that the passes do not know (``OVERLOADS``) is returned
    itself, so that no pass takes it for the operator it is named after.
    """
    whole = any_overload(node)
    known = OVERLOADS.get(whole)
    return whole if known is None or getattr(node.target, "_overloadname", "") in known else node.target


def _packets(namespace: Any, names: str) -> frozenset[Any]:
    """The operators of ``names`` that this version of torch has."""
    return frozenset(getattr(namespace, name) for name in names.split() if hasattr(namespace, name))


# Attention in one operator: queries, keys and values are its first three arguments.
FUSED_ATTENTION = _packets(
    aten,
    "scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_attention_math_for_mps "
    "_scaled_dot_product_flash_attention "
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_fused_attention_overrideable _flash_attention_forward _efficient_attention_forward "
    "_cudnn_attention_forward",
)

# Layers in one operator: attention, and the MLP and the residual adds around both.
FUSED_LAYERS = _packets(aten, "_transformer_encoder_layer_fwd _native_multi_head_attention")

# Products with weights of fewer bits; torch's FLOP counter knows none of them.
QUANTISED_PRODUCTS = _packets(
    aten,
    "_int_mm _scaled_mm_v2 _weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_for_cpu "
    "_weight_int4pack_mm_with_scales_and_zeros _dyn_quant_matmul_4bit _mixed_dtypes_linear",
)

# Contractions of two operands; the tuple gives the positions of those operands.
CONTRACTION_OPERANDS: dict[Any, tuple[int, int]] = {
    **dict.fromkeys(QUANTISED_PRODUCTS, (0, 1)),
    **dict.fromkeys(
        _packets(
            aten,
            "mm bmm mv dot matmul linear convolution _convolution convolution_overrideable cudnn_convolution "
            "_slow_conv2d_forward _scaled_mm _grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2 _cslt_sparse_mm "
            "_sparse_semi_structured_linear",
        ),
        (0, 1),
    ),
    **dict.fromkeys(_packets(aten, "addmm baddbmm addmv addbmm _addmm_activation"), (1, 2)),
    **dict.fromkeys(_packets(aten, "_sparse_semi_structured_mm"), (0, 2)),
    **dict.fromkeys(_packets(aten, "_sparse_semi_structured_addmm"), (1, 3)),
}

# Fourier transforms mix tokens as attention does, with no weight and no second operand; their FLOPs are not counted.
FOURIER = _packets(aten, "_fft_r2c _fft_c2r _fft_c2c")

# Operators that change how a tensor looks and not what it says: the residual stream behind them is the same residual stream.
DRESS = _packets(
    aten,
    "view _unsafe_view reshape permute transpose t unsqueeze squeeze alias detach clone contiguous _to_copy "
    "slice select clamp clamp_min clamp_max expand lift_fresh_copy",
) | _packets(prims, "convert_element_type")

CASTS = _packets(aten, "_to_copy") | _packets(prims, "convert_element_type")

# Dress under which one element stays one element, so that a factor found behind it is still a factor of the whole.
ELEMENTWISE_DRESS = CASTS | _packets(
    aten, "view _unsafe_view reshape permute transpose t unsqueeze squeeze alias detach clone contiguous lift_fresh_copy"
)


# Namespaces whose operators are defined by torch itself; anything else is somebody's kernel.
_TORCH_NAMESPACES = frozenset({"aten", "prims", "prim", "_c10d_functional", "inductor", "quantized_decomposed"})


def is_opaque(node: fx.Node) -> bool:
    """A custom operator, or a higher-order operator such as flex attention: taken for heavy, whatever is inside."""
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    if isinstance(node.target, HigherOrderOperator):
        return True
    return isinstance(node.target, OpOverload) and node.target.namespace not in _TORCH_NAMESPACES


def is_heavy(node: fx.Node) -> bool:
    """Does this node do the arithmetic that forecasting saves: a matrix product, a convolution, attention, a Fourier transform,
    or an opaque op?
    """
    if node.op != "call_function":
        return False
    whole = any_overload(node)  # whatever else the overload takes, it is work
    return whole in CONTRACTION_OPERANDS or whole in FUSED_ATTENTION | FUSED_LAYERS | FOURIER or is_opaque(node)


def contraction_operands(node: fx.Node) -> tuple[fx.Node, ...]:
    """The operands that a heavy node multiplies with one another (every tensor it reads, where the operator is opaque)."""
    positions = CONTRACTION_OPERANDS.get(any_overload(node))
    if positions is None:
        return tuple(node.all_input_nodes)
    return tuple(arg for arg in (node.args[i] for i in positions) if isinstance(arg, fx.Node))


def dressed_input(node: fx.Node, dress: frozenset[Any] = DRESS) -> fx.Node | None:
    """The tensor under a dress operator, or None where ``node`` is not one.

    ``split`` counts with its ``getitem``; a mask is dress too, by multiplication with booleans or by ``where``.
    """
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    inner = node.args[0]
    if packet(node) in dress:
        return inner
    if dress is DRESS and packet(node) in (aten.mul, aten.where):
        return _masked_input(node)
    if dress is DRESS and node.target is operator.getitem and packet(inner) in _SPLITS:
        source = inner.args[0]
        return source if isinstance(source, fx.Node) else None
    return None


def _masked_input(node: fx.Node) -> fx.Node | None:
    """``x`` of ``x * mask`` and of ``where(mask, x, constant)``, where it has the shape of the whole."""
    if packet(node) is aten.where:
        candidates = [arg for arg in node.args[1:] if isinstance(arg, fx.Node)]
        masked = [arg for arg in candidates if arg.all_input_nodes or arg.op == "placeholder"]
    else:
        candidates = [arg for arg in node.args if isinstance(arg, fx.Node)]
        masked = [arg for arg in candidates if not _is_mask(arg)]
    if len(candidates) != 2 or len(masked) != 1:
        return None
    return masked[0] if same_shape(node, masked[0]) else None


def _is_mask(node: fx.Node) -> bool:
    meta = tensor_meta(undress(node))
    return meta is not None and meta.dtype is torch.bool


_SPLITS = _packets(aten, "split split_with_sizes unbind chunk")


def undress(node: fx.Node) -> fx.Node:
    """The tensor at the bottom of a chain of casts, views, slices and clamps."""
    while (inner := dressed_input(node)) is not None:
        node = inner
    return node


def same_shape(left: fx.Node, right: fx.Node) -> bool:
    """Are both tensors, of one shape? A size that only the data determine equals itself alone."""
    a, b = tensor_meta(left), tensor_meta(right)
    return a is not None and b is not None and a.dim() == b.dim() and guard_or_false(sym_eq(a.shape, b.shape))


def tensor_meta(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor that ``node`` evaluates to, or None for a non-tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None
