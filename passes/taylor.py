"""The numerics as graph nodes: the Taylor polynomial of a forecast step and the difference update of a full step.

    forecast   F      = sum_i weights[i] * D_i                                weights[i] = k**i / i!  for the official recursion
    update     D_0'   = F
               D_i+1' = (D_i' - D_i) * reciprocal_gaps[i]

Both are linear in the buffers, so the coefficients are data: one graph serves every step, interval and gap, and an order that
is not formed yet has coefficient zero. Sums and differences accumulate in float32 (float64 under a float64 feature) whatever the
buffers' dtype. (TaylorSeer, arXiv 2503.06923, equations 3 and 6, as its official code computes them.)
"""

from collections.abc import Sequence

import torch
from torch import fx

from taylorseer_fx.passes.emit import Emit, cast

aten = torch.ops.aten


def accumulation_dtype(feature: torch.dtype) -> torch.dtype:
    return torch.promote_types(feature, torch.float32)


def emit_polynomial(emit: Emit, buffers: Sequence[fx.Node], weights: fx.Node, dtype: torch.dtype) -> fx.Node:
    """``sum_i weights[i] * buffers[i]`` as a tensor of ``dtype``."""
    wide = accumulation_dtype(dtype)
    total: fx.Node | None = None
    for i, buffer in enumerate(buffers):
        weight = cast(emit, emit(aten.select.int, weights, 0, i), wide)
        term = emit(aten.mul.Tensor, cast(emit, buffer, wide), weight)
        total = term if total is None else emit(aten.add.Tensor, total, term)
    assert total is not None, "a feature has at least the buffer of order 0"
    return cast(emit, total, dtype)


def emit_differences(emit: Emit, feature: fx.Node, buffers: Sequence[fx.Node], reciprocal_gaps: fx.Node) -> list[fx.Node]:
    """The new value of every buffer, given the feature just computed; each in its buffer's dtype."""
    wide = accumulation_dtype(feature.meta["val"].dtype)
    new = [cast(emit, feature, wide)]
    for i, buffer in enumerate(buffers[:-1]):
        reciprocal_gap = cast(emit, emit(aten.select.int, reciprocal_gaps, 0, i), wide)
        difference = emit(aten.sub.Tensor, new[-1], cast(emit, buffer, wide))
        new.append(emit(aten.mul.Tensor, difference, reciprocal_gap))
    return [cast(emit, value, buffer.meta["val"].dtype) for value, buffer in zip(new, buffers, strict=True)]
