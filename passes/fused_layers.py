"""Write operators of torch that hold a whole layer as the attention, the MLP and the sums that they are.

    before:  %y = _transformer_encoder_layer_fwd(%x, ...)
    after:   %qkv = linear(%x), %o = sdpa(%q, %k, %v), %p = linear(%o), %a = add(%x, %p), %n = layer_norm(%a), ... %y

``nn.TransformerEncoderLayer`` runs as one such operator in evaluation mode (torch 2.13: under ``torch.compile`` too), and
``nn.MultiheadAttention`` may. The functions here compute what their kernels do: a mask, of whatever dtype, hides where it is
not zero, and the GELU of a CUDA device is the one with tanh.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import guard_or_false
from torch.nn import functional

from taylorseer_fx.compat import OpOverload
from taylorseer_fx.passes.ops import FUSED_LAYERS, tensor_meta
from taylorseer_fx.passes.residual_ops import Decomposition

# Masks by ``mask_type``: of queries and keys, of the keys of each sample, of both and every head.
_MASK_RANKS = {0: 2, 1: 2, 2: 4}


def fused_layers() -> dict[OpOverload, Decomposition]:
    """The table of the operators that this version of torch has."""
    return {packet.default: Decomposition(_FUNCTIONS[packet.__name__], _is_written_out) for packet in FUSED_LAYERS}


def _encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Tensor:
    def attend(x: Tensor) -> Tensor:
        weights = (qkv_weight, qkv_bias, proj_weight, proj_bias)
        return _attention(x, x, x, embed_dim, num_heads, *weights, mask, need_weights=False, mask_type=mask_type)[0]

    def mlp(x: Tensor) -> Tensor:
        hidden = functional.linear(x, ffn_weight_1, ffn_bias_1)
        hidden = functional.gelu(hidden, approximate="tanh" if x.is_cuda else "none") if use_gelu else functional.relu(hidden)
        return functional.linear(hidden, ffn_weight_2, ffn_bias_2)

    def norm_1(x: Tensor) -> Tensor:
        return functional.layer_norm(x, (embed_dim,), norm_weight_1, norm_bias_1, eps)

    def norm_2(x: Tensor) -> Tensor:
        return functional.layer_norm(x, (embed_dim,), norm_weight_2, norm_bias_2, eps)

    if norm_first:
        x = src + attend(norm_1(src))
        return x + mlp(norm_2(x))
    x = norm_1(src + attend(src))
    return norm_2(x + mlp(x))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average: bool = True,
    mask_type: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The output, and the weights: of all heads, their mean, or none."""
    q, k, v = (
        x.view(*x.shape[:2], num_heads, embed_dim // num_heads).transpose(1, 2)
        for x in _projected(query, key, value, qkv_weight, qkv_bias)
    )
    seen = _seen(mask, mask_type)
    if need_weights:
        scores = q * (embed_dim // num_heads) ** -0.5 @ k.transpose(-1, -2)
        scores = scores if seen is None else torch.where(seen, scores, -torch.inf)
        weights = scores.softmax(-1)
        heads = weights @ v
        weights = weights.mean(1) if average else weights
    else:
        heads, weights = functional.scaled_dot_product_attention(q, k, v, seen), query.new_empty(0)
    return functional.linear(heads.transpose(1, 2).flatten(2), proj_weight, proj_bias), weights


def _projected(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values: one product where they are made of one tensor."""
    if query is key and key is value:
        q, k, v = functional.linear(query, weight, bias).chunk(3, -1)
        return q, k, v
    parts = zip((query, key, value), weight.chunk(3), bias.chunk(3), strict=True)
    q, k, v = (functional.linear(x, w, b) for x, w, b in parts)
    return q, k, v


def _seen(mask: Tensor | None, mask_type: int | None) -> Tensor | None:
    """The places where attention looks, as a mask that broadcasts to ``[batch, heads, queries, keys]``."""
    if mask is None:
        return None
    hidden = mask.to(torch.bool)
    return ~(hidden[:, None, None] if mask_type == 1 else hidden)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "_transformer_encoder_layer_fwd": _encoder_layer,
    "_native_multi_head_attention": _attention,
}


def _is_written_out(node: fx.Node) -> bool:
    """Is it a layer of the plain kind: dense tensors, not empty, with no mask or one whose shape is known?"""
    values = [value for value in map(tensor_meta, node.all_input_nodes) if value is not None]
    if any(value.is_nested or guard_or_false(value.numel() == 0) for value in values):
        return False
    mask, mask_type = _argument(node, "mask"), _argument(node, "mask_type")
    meta = tensor_meta(mask) if isinstance(mask, fx.Node) else None
    return mask is None or (meta is not None and isinstance(mask_type, int) and _MASK_RANKS.get(mask_type) == meta.dim())


def _argument(node: fx.Node, name: str) -> Any:
    """The argument ``name`` of the operator of ``node``, by position or by keyword; None where it is left out."""
    target: Any = node.target
    position = [argument.name for argument in target._schema.arguments].index(name)
    return node.args[position] if position < len(node.args) else node.kwargs.get(name)
