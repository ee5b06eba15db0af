"""The coefficients of the recursion, as host arithmetic in float64.

The graphs are linear in the derivative buffers, so all that distinguishes a step from another is a handful of numbers: the
reciprocal gaps of the update and the weights of the polynomial. An order that is not formed yet has coefficient zero.
(TaylorSeer, arXiv 2503.06923, and its official code for the start-up rule.)
"""

from math import factorial


def formed_after(formed: int, step: int, warmup: int, order: int) -> int:
    """Highest order that exists after the full step ``step``, given the highest before it (-1: none).

    One more order a full step; but the official code forms no derivative at steps ``<= warmup - 2``.
    """
    return min(formed + 1, order) if step > warmup - 2 else 0


def reciprocal_gaps(order: int, formed: int, gap: int) -> tuple[float, ...]:
    """``1 / gap`` for each difference that a full step forms, zero for the others; ``order`` numbers."""
    return tuple(1.0 / gap if i < formed else 0.0 for i in range(order))


def taylor_weights(order: int, formed: int, distance: int) -> tuple[float, ...]:
    """``distance**i / i!`` for each order that exists, zero for the others; ``order + 1`` numbers."""
    return tuple(distance**i / factorial(i) if i <= formed else 0.0 for i in range(order + 1))
