"""The vocabulary of the passes: which ATen operators do the work, and which only change how a tensor looks.

One place, so that a new contraction (a quantised matmul, a fused attention) is taught to every pass at once.
"""

import operator
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import guard_or_false, sym_eq

aten = torch.ops.aten
prims = torch.ops.prims


def packet(node: fx.Node) -> Any:
    """The operator without its overload (``aten.add`` for ``aten.add.Tensor``), or the bare target."""
    return getattr(node.target, "overloadpacket", node.target)


def _packets(namespace: Any, names: str) -> frozenset[Any]:
    """The operators of ``names`` that this version of torch has."""
    return frozenset(getattr(namespace, name) for name in names.split() if hasattr(namespace, name))


# Attention in one operator: queries, keys and values are its first three arguments.
FUSED_ATTENTION = _packets(
    aten,
    "scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention "
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_fused_attention_overrideable _flash_attention_forward _efficient_attention_forward "
    "_cudnn_attention_forward",
)

# Contractions of two operands; the tuple gives the positions of those operands.
CONTRACTION_OPERANDS: dict[Any, tuple[int, int]] = {
    **dict.fromkeys(_packets(aten, "mm bmm mv dot matmul linear _int_mm _scaled_mm convolution _weight_int8pack_mm"), (0, 1)),
    **dict.fromkeys(_packets(aten, "addmm baddbmm addmv addbmm"), (1, 2)),
}

# Fourier transforms mix tokens as attention does, with no weight and no second operand; their FLOPs are not counted.
FOURIER = _packets(aten, "_fft_r2c _fft_c2r _fft_c2c")

# Operators that change how a tensor looks and not what it says: the stream behind them is the same stream.
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
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return True
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in _TORCH_NAMESPACES


def is_heavy(node: fx.Node) -> bool:
    """Does this node do the arithmetic that forecasting saves: a matrix product, a convolution, attention, a Fourier transform,
    or an opaque op?
    """
    if node.op != "call_function":
        return False
    op = packet(node)
    return op in CONTRACTION_OPERANDS or op in FUSED_ATTENTION or op in FOURIER or is_opaque(node)


def contraction_operands(node: fx.Node) -> tuple[fx.Node, ...]:
    """The operands that a heavy node multiplies with one another (every tensor it reads, where the operator is opaque)."""
    positions = CONTRACTION_OPERANDS.get(packet(node))
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
    """Are both tensors, of one shape? A size that only the data tell equals itself alone."""
    a, b = tensor_meta(left), tensor_meta(right)
    return a is not None and b is not None and a.dim() == b.dim() and guard_or_false(sym_eq(a.shape, b.shape))


def tensor_meta(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor that ``node`` evaluates to, or None for a non-tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None
