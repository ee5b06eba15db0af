"""The numerics as graph nodes: the Taylor polynomial of a forecast step and the update of the buffers in a full step.

    forecast           F     = sum_i coefficients[i] * B_i

    snapshots          B_0'   = F,  B_(i+1)' = B_i                     the buffers only change places: one is written, none read
    differences        B_0'   = F,  B_(i+1)' = (B_i' - B_i) * reciprocal_gaps[i]

Both are linear in the buffers, so the coefficients are data: one graph serves every step, interval and gap, and an order that
is not formed yet has coefficient zero. With snapshots the coefficients are those that the recursion would make of them
(``runtime/coefficients.py``). Differences are small, so they can be kept in eight bits; then the update is the recursion
itself. Sums accumulate in float32 (float64 under a float64 feature) whatever the buffers' dtype. (TaylorSeer, arXiv 2503.06923,
equations 3 and 6, as its official code computes them.)
"""

from collections.abc import Sequence

import torch
from torch import fx

from taylorseer_fx.passes.emit import Emit, cast
from taylorseer_fx.passes.storage import FLOAT8

aten = torch.ops.aten


def accumulation_dtype(feature: torch.dtype) -> torch.dtype:
    return torch.promote_types(feature, torch.float32)


def emit_polynomial(emit: Emit, buffers: Sequence[fx.Node], coefficients: fx.Node, wide: torch.dtype) -> fx.Node:
    """``sum_i coefficients[i] * buffers[i]`` as a tensor of the dtype ``wide``."""
    total: fx.Node | None = None
    for i, buffer in enumerate(buffers):
        coefficient = cast(emit, emit(aten.select.int, coefficients, 0, i), wide)
        term = emit(aten.mul.Tensor, cast(emit, buffer, wide), coefficient)
        total = term if total is None else emit(aten.add.Tensor, total, term)
    assert total is not None, "a feature has at least the buffer of order 0"
    return total


def emit_snapshots(emit: Emit, feature: fx.Node, buffers: Sequence[fx.Node]) -> list[fx.Node]:
    """The new value of every buffer: the feature just computed, then the buffers before, less the oldest."""
    return [cast(emit, feature, buffers[0].meta["val"].dtype), *buffers[:-1]]


def emit_differences(emit: Emit, feature: fx.Node, buffers: Sequence[fx.Node], reciprocal_gaps: fx.Node) -> list[fx.Node]:
    """The new value of every buffer, given the feature just computed; each in its buffer's dtype."""
    wide = accumulation_dtype(feature.meta["val"].dtype)
    new = [cast(emit, feature, wide)]
    for i, buffer in enumerate(buffers[:-1]):
        reciprocal_gap = cast(emit, emit(aten.select.int, reciprocal_gaps, 0, i), wide)
        difference = emit(aten.sub.Tensor, new[-1], cast(emit, buffer, wide))
        new.append(emit(aten.mul.Tensor, difference, reciprocal_gap))
    return [_stored(emit, value, buffer.meta["val"].dtype) for value, buffer in zip(new, buffers, strict=True)]


def _stored(emit: Emit, value: fx.Node, dtype: torch.dtype) -> fx.Node:
    if dtype in FLOAT8:  # out of range it would become inf or NaN; clamping is the better forecast
        limit = torch.finfo(dtype).max
        value = emit(aten.clamp_max.default, emit(aten.clamp_min.default, value, -limit), limit)
    return cast(emit, value, dtype)
