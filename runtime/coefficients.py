"""The coefficients of the recursion, as host arithmetic in float64.

    recursion   D_0' = F,  D_(i+1)' = (D_i' - D_i) / gap           forecast = sum_i distance**i / i! * D_i

All of it is linear in the features of the last full steps, so one step differs from another in a handful of numbers. These depend
on the contents of the buffers (``passes/taylor.py``): the differences themselves, or snapshots of the feature at
the last full steps, of which every difference is a combination. (TaylorSeer, arXiv 2503.06923, and its official code for the
start-up rule.)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import factorial
from typing import Protocol

Row = tuple[float, ...]
Terms = Callable[[int, int, int], Row]  # (order, formed, distance): the factor of each difference


class History(Protocol):
    """The contents of a stream's buffers after some full steps, as far as the host needs them. Immutable."""

    def after_full(self, step: int, gap: int, warmup: int) -> "History":
        """The history after one more full step, ``gap`` steps after the last."""
        ...

    def update_coefficients(self, gap: int) -> Row:
        """The numbers that the graph of the full step that led here takes; empty if it takes none."""
        ...

    def forecast_coefficients(self, distance: int) -> Row:
        """The coefficient of each buffer in a forecast, ``distance`` steps after the last full step."""
        ...


def formed_after(formed: int, step: int, warmup: int, order: int) -> int:
    """The highest order that exists after the full step ``step``, given the highest before it (-1: none).

    One more order per full step; but the official code forms no derivative at steps ``<= warmup - 2``.
    """
    return min(formed + 1, order) if step > warmup - 2 else 0


def taylor_coefficients(order: int, formed: int, distance: int) -> Row:
    """``distance**i / i!`` for each order that exists, zero for the others; ``order + 1`` numbers."""
    return tuple(distance**i / factorial(i) if i <= formed else 0.0 for i in range(order + 1))


@dataclass(frozen=True)
class DifferenceHistory:
    """The buffers are ``D_0 .. D_order``; ``formed`` is the highest order that exists, -1 before the first full step."""

    order: int
    terms: Terms = taylor_coefficients
    formed: int = -1

    def after_full(self, step: int, gap: int, warmup: int) -> "DifferenceHistory":  # noqa: ARG002
        return replace(self, formed=formed_after(self.formed, step, warmup, self.order))

    def update_coefficients(self, gap: int) -> Row:
        """``1 / gap`` for each difference that the full step formed, zero for the others."""
        return tuple(1.0 / gap if i < self.formed else 0.0 for i in range(self.order))

    def forecast_coefficients(self, distance: int) -> Row:
        return self.terms(self.order, self.formed, distance)


@dataclass(frozen=True)
class SnapshotHistory:
    """The buffers are the features of the last ``num_buffers`` full steps, newest first; ``rows[i]`` makes ``D_i`` of them."""

    order: int
    num_buffers: int
    terms: Terms = taylor_coefficients
    rows: tuple[Row, ...] = ()

    def after_full(self, step: int, gap: int, warmup: int) -> "SnapshotHistory":
        formed = formed_after(len(self.rows) - 1, step, warmup, self.order)
        aged = [(0.0, *row[:-1]) for row in self.rows]
        rows = [(1.0, *([0.0] * (self.num_buffers - 1)))]
        for i in range(formed):
            rows.append(tuple((new - old) / gap for new, old in zip(rows[i], aged[i], strict=True)))
        return replace(self, rows=tuple(rows))

    def update_coefficients(self, gap: int) -> Row:  # noqa: ARG002
        return ()

    def forecast_coefficients(self, distance: int) -> Row:
        terms = self.terms(self.order, len(self.rows) - 1, distance)
        columns = zip(*self.rows, strict=True)
        return tuple(sum(term * value for term, value in zip(terms, column, strict=False)) for column in columns)
