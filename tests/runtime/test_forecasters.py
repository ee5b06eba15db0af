"""Every forecaster against its paper's formula, written without the runtime: matrices and polynomials in float64."""

from itertools import accumulate
from math import factorial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import chebyshev, hermite
from numpy.polynomial import polynomial as powers

from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.runtime.forecasters import FORECASTERS, begin_history

GAPS = st.lists(st.integers(1, 9), min_size=1, max_size=8)
ORDERS = st.integers(0, 4)
DISTANCES = st.integers(1, 9)
LENGTH = 100
WARMUP = 1


def full_steps(gaps: list[int]) -> list[int]:
    return [0, *accumulate(gaps)]


def row(name: str, steps: list[int], distance: int, order: int, history: int | None = None) -> np.ndarray:
    """What the runtime multiplies the snapshots by, oldest first, after full steps at ``steps``."""
    storage = Storage(order, history=history)
    state, last = begin_history(name, storage, LENGTH), 0
    for step in steps:
        state, last = state.after_full(step, max(step - last, 1), WARMUP), step
    newest_first = state.forecast_coefficients(distance)
    assert len(newest_first) == storage.num_buffers
    assert all(value == 0 for value in newest_first[len(steps) :])
    return np.array(newest_first[: len(steps)])[::-1]


def used(steps: list[int], count: int) -> np.ndarray:
    return np.array(steps[-count:], dtype=np.float64)


def differences(steps: list[int], order: int) -> list[np.ndarray]:
    """``D_0 .. D_order`` as rows over all of ``steps``, by the recursion of the official code on unit vectors."""
    found: list[np.ndarray] = []
    last = 0
    for i, step in enumerate(steps):
        new = [np.eye(len(steps))[i]]
        for old in found[: min(i, order)]:
            new.append((new[-1] - old) / (step - last))
        found, last = new, step
    return found


@given(GAPS, DISTANCES, ORDERS)
def test_hermite_is_hicache(gaps, distance, order):
    """F + sum of sigma**i H_i(sigma x) / i! D_i, with numpy's (the physicists') Hermite polynomials and sigma one half."""
    steps = full_steps(gaps)
    expected = sum(
        0.5**i * hermite.hermval(0.5 * distance, np.eye(i + 1)[i]) / factorial(i) * each
        for i, each in enumerate(differences(steps, order))
    )
    np.testing.assert_allclose(row("hermite", steps, distance, order), expected[-(order + 1) :], atol=1e-9)


@given(GAPS, DISTANCES, ORDERS)
def test_newton_is_the_interpolating_polynomial(gaps, distance, order):
    """A Vandermonde system, solved for the values that every snapshot alone would have."""
    steps = full_steps(gaps)
    points = used(steps, order + 1)
    span = max(points[-1] + distance - points[0], 1.0)
    where, target = (points - points[0]) / span, (points[-1] + distance - points[0]) / span
    polynomials = np.linalg.solve(powers.polyvander(where, len(points) - 1), np.eye(len(points)))
    expected = powers.polyvander(np.array([target]), len(points) - 1)[0] @ polynomials
    np.testing.assert_allclose(row("newton", steps, distance, order), expected, rtol=1e-5, atol=1e-6)


@given(GAPS, DISTANCES, st.integers(1, 4), st.integers(0, 4))
def test_chebyshev_is_spectrum(gaps, distance, order, more):
    """Half of the last line, half of the ridge regression with lambda 0.1, by least squares on an augmented system."""
    steps = full_steps(gaps)
    points = used(steps, order + 1 + more)
    basis = chebyshev.chebvander(2 * np.array([*points, points[-1] + distance]) / LENGTH - 1, order)
    augmented = np.vstack([basis[:-1], np.sqrt(0.1) * np.eye(order + 1)])
    targets = np.vstack([np.eye(len(points)), np.zeros((order + 1, len(points)))])
    regression = basis[-1] @ np.linalg.lstsq(augmented, targets, rcond=None)[0]
    line = np.zeros(len(points))
    gap = points[-1] - points[-2]
    line[-1], line[-2] = 1 + distance / gap, -distance / gap
    np.testing.assert_allclose(
        row("chebyshev", steps, distance, order, order + 1 + more), 0.5 * regression + 0.5 * line, rtol=1e-7, atol=1e-9
    )


@given(GAPS, DISTANCES, ORDERS, st.integers(0, 4))
def test_more_history_changes_nothing_but_a_regression(gaps, distance, order, more):
    steps = full_steps(gaps)
    for name in FORECASTERS:
        if name != "chebyshev":
            plain, longer = row(name, steps, distance, order), row(name, steps, distance, order, order + 1 + more)
            np.testing.assert_array_equal(longer[-len(plain) :], plain)
            assert not longer[: -len(plain)].any()


@pytest.mark.parametrize("name", FORECASTERS)
@given(GAPS, DISTANCES)
def test_order_zero_reuses(name, gaps, distance):
    """But for Spectrum, which extends the last line whatever its order."""
    if name != "chebyshev":
        np.testing.assert_array_equal(row(name, full_steps(gaps), distance, 0), [1.0])


@given(GAPS, DISTANCES, ORDERS)
def test_what_newton_forecasts_exactly(gaps, distance, order):
    """Any polynomial of a degree up to the order, on even and uneven gaps, once there are as many snapshots."""
    steps = full_steps(gaps)
    degree = min(order, len(steps) - 1)
    points = used(steps, order + 1)
    values = (points / LENGTH) ** degree
    expected = ((points[-1] + distance) / LENGTH) ** degree
    assert row("newton", steps, distance, order) @ values == pytest.approx(expected, abs=1e-6)
