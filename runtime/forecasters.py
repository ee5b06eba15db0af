"""The forecasters: each forecasts a feature from those of the last full steps by a row of host numbers, one per snapshot.

    taylor      the recursion of TaylorSeer's official code (``runtime/coefficients.py``; arXiv 2503.06923)
    hermite     its differences, times scaled Hermite polynomials of the distance in place of powers (HiCache, arXiv 2508.16984)
    newton      the polynomial through the last ``order + 1`` snapshots, exact however uneven the gaps (Newton's interpolation)
    chebyshev   half the line through the last two, half a ridge regression on Chebyshev polynomials of the time of the run
                (Spectrum, arXiv 2603.01623)

All are linear in the snapshots, so no graph depends on which one it is.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import factorial, prod

import numpy as np

from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.runtime.coefficients import DifferenceHistory, History, Row, SnapshotHistory, taylor_coefficients

CONTRACTION = 0.5  # HiCache's sigma, the default of its code
RIDGE = 0.1  # Spectrum's lambda, and
SHARE = 0.5  # its weight of the regression against the line: the defaults of its code
USUAL_LENGTH = 50  # the steps of a run whose length is not known

Fit = Callable[[tuple[int, ...], int, int, int], Row]  # (steps of the snapshots, newest first; target; order; length of the run)


@dataclass(frozen=True)
class FittedHistory:
    """A history whose buffers are the features of the last ``num_buffers`` full steps, newest first; ``steps`` are these."""

    fit: Fit
    order: int
    num_buffers: int
    length: int
    steps: tuple[int, ...] = ()

    def after_full(self, step: int, gap: int, warmup: int) -> "FittedHistory":  # noqa: ARG002
        newest = self.steps[0] + gap if self.steps else step
        return replace(self, steps=(newest, *self.steps)[: self.num_buffers])

    def update_coefficients(self, gap: int) -> Row:  # noqa: ARG002
        return ()

    def forecast_coefficients(self, distance: int) -> Row:
        row = self.fit(self.steps, self.steps[0] + distance, self.order, self.length)
        return (*row, *[0.0] * (self.num_buffers - len(row)))


def begin_history(forecaster: str, storage: Storage, length: int | None) -> History:
    """The history before the first full step of a generation, of ``length`` steps if that is known."""
    if forecaster in FITS:
        return FittedHistory(FITS[forecaster], storage.order, storage.num_buffers, length or USUAL_LENGTH)
    terms = TERMS[forecaster]
    if storage.keeps_differences:
        return DifferenceHistory(storage.order, terms)
    return SnapshotHistory(storage.order, storage.num_buffers, terms)


def hermite_coefficients(order: int, formed: int, distance: int) -> Row:
    """``sigma**i * H_i(sigma * distance) / i!`` for each order that exists, zero for the others; ``order + 1`` numbers."""
    x = CONTRACTION * distance
    values = [1.0, 2 * x]
    for i in range(1, order):
        values.append(2 * x * values[i] - 2 * i * values[i - 1])
    return tuple(CONTRACTION**i * values[i] / factorial(i) if i <= formed else 0.0 for i in range(order + 1))


def newton(steps: tuple[int, ...], target: int, order: int, length: int) -> Row:  # noqa: ARG001
    """The value at ``target`` of the polynomial through the newest ``order + 1`` snapshots, or as many as there are."""
    used = steps[: order + 1]
    return tuple(prod((target - other) / (step - other) for other in used if other != step) for step in used)


def chebyshev(steps: tuple[int, ...], target: int, order: int, length: int) -> Row:
    """Spectrum's forecast at ``target``: of a regression on ``T_0 .. T_order``, over all snapshots, and of a line."""
    basis = np.polynomial.chebyshev.chebvander(2.0 * np.array([*steps, target]) / length - 1.0, order)
    known, wanted = basis[:-1], basis[-1]
    regression = known @ np.linalg.solve(known.T @ known + RIDGE * np.eye(order + 1), wanted)
    line = newton(steps, target, 1, length)
    return tuple(float(SHARE * ridge + (1 - SHARE) * (line[i] if i < len(line) else 0.0)) for i, ridge in enumerate(regression))


TERMS = {"taylor": taylor_coefficients, "hermite": hermite_coefficients}  # may be stored as differences or as snapshots
FITS = {"newton": newton, "chebyshev": chebyshev}  # only as snapshots
FORECASTERS = (*TERMS, *FITS)
