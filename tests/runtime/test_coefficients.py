"""The coefficients of the recursion: the published formula, the start-up rule, and what they forecast exactly."""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import factorial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taylorseer_fx.runtime.coefficients import DifferenceHistory, SnapshotHistory, formed_after, taylor_coefficients
from taylorseer_fx.runtime.schedule import Schedule

ORDERS = st.integers(0, 4)


@dataclass(frozen=True)
class Step:
    """What the recursion knows after a step: the value it gave, and the orders formed so far."""

    value: float
    formed: int


def simulate(signal, schedule: Schedule, order: int, num_steps: int) -> list[Step]:
    """The recursion in plain Python on a scalar signal: sampled at full steps, forecast at the others.

    Both histories are run beside it, each with the buffers that it is for, and must say the same.
    """
    differences, formed, last, steps = [0.0] * (order + 1), -1, 0, []
    snapshots = [0.0] * (order + 1)
    histories = [DifferenceHistory(order), SnapshotHistory(order, order + 1)]
    for step in range(num_steps):
        gap = max(step - last, 1)
        if schedule.is_full(step):
            formed = formed_after(formed, step, schedule.warmup_steps, order)
            histories = [history.after_full(step, gap, schedule.warmup_steps) for history in histories]
            new = [signal(step)]
            for i, (old, coefficient) in enumerate(zip(differences, histories[0].update_coefficients(gap), strict=False)):
                new.append((new[i] - old) / gap if i < formed else 0.0)
                assert coefficient == (1 / gap if i < formed else 0.0)
            differences, snapshots, last = new, [signal(step), *snapshots[:-1]], step
            assert histories[1].update_coefficients(gap) == ()
            steps.append(Step(signal(step), formed))
        else:
            terms = zip(range(formed + 1), differences, strict=False)
            value = sum((step - last) ** i / factorial(i) * difference for i, difference in terms)
            for history, buffers in zip(histories, (differences, snapshots), strict=True):
                coefficients = history.forecast_coefficients(step - last)
                assert len(coefficients) == order + 1
                size = sum(abs(w * b) for w, b in zip(coefficients, buffers, strict=True))
                assert dot(coefficients, buffers) == pytest.approx(value, abs=1e-9 * max(size, 1.0))
            steps.append(Step(value, formed))
    return steps


def dot(coefficients, buffers) -> float:
    return sum(weight * buffer for weight, buffer in zip(coefficients, buffers, strict=True))


class TestWeights:
    @given(ORDERS, st.integers(-1, 4), st.integers(1, 50))
    def test_published_formula(self, order, formed, distance):
        """k**i / i! for the orders that exist, zero for the others."""
        coefficients = taylor_coefficients(order, min(formed, order), distance)
        assert len(coefficients) == order + 1
        assert coefficients == tuple(distance**i / factorial(i) if i <= min(formed, order) else 0.0 for i in range(order + 1))

    @pytest.mark.parametrize(
        ("order", "formed", "distance", "expected"),
        [
            (0, 0, 4, (1.0,)),
            (1, 1, 3, (1.0, 3.0)),
            (2, 2, 4, (1.0, 4.0, 8.0)),
            (3, 3, 2, (1.0, 2.0, 2.0, 8 / 6)),
            (4, 4, 1, (1.0, 1.0, 0.5, 1 / 6, 1 / 24)),
            (2, 1, 4, (1.0, 4.0, 0.0)),
            (2, 0, 4, (1.0, 0.0, 0.0)),
            (2, -1, 4, (0.0, 0.0, 0.0)),
        ],
    )
    def test_values(self, order, formed, distance, expected):
        assert taylor_coefficients(order, formed, distance) == pytest.approx(expected, abs=0)

    @given(ORDERS, st.integers(0, 4))
    def test_at_distance_zero_the_feature_itself(self, order, formed):
        assert taylor_coefficients(order, min(formed, order), 0) == (1.0, *[0.0] * order)


class TestSnapshots:
    @given(ORDERS, st.lists(st.integers(1, 6), max_size=8), st.integers(1, 6), st.integers(0, 12))
    def test_weights_sum_to_one(self, order, gaps, warmup, distance):
        """Whatever is the same at all full steps is forecast as it is."""
        history, step = SnapshotHistory(order, order + 1).after_full(0, 1, warmup), 0
        for gap in gaps:
            step += gap
            history = history.after_full(step, gap, warmup)
        coefficients = history.forecast_coefficients(distance)
        assert sum(coefficients) == pytest.approx(1, abs=1e-9 * max(map(abs, coefficients)))

    def test_a_line_through_two(self):
        """Order 1, gap 5, two steps on: the newest and two fifths of what it rose by."""
        history = SnapshotHistory(1, 2).after_full(0, 1, 1).after_full(5, 5, 1)
        assert history.forecast_coefficients(2) == pytest.approx((1.4, -0.4))

    def test_what_is_not_formed_has_no_weight(self):
        assert SnapshotHistory(2, 3).after_full(0, 1, 3).after_full(1, 1, 3).forecast_coefficients(4) == (1.0, 0.0, 0.0)


SIGNALS = st.lists(st.floats(-100, 100), min_size=40, max_size=40)
SCHEDULES = st.builds(Schedule, st.integers(1, 8), st.integers(1, 5)) | st.builds(
    lambda gaps: Schedule(full_steps=tuple(accumulate(gaps, initial=0))), st.lists(st.integers(1, 7), max_size=12)
)


class TestHistories:
    @given(SIGNALS, SCHEDULES, ORDERS)
    def test_both_are_the_recursion(self, signal, schedule, order):
        """Of any signal, under any schedule: ``simulate`` compares them at every step."""
        steps = simulate(signal.__getitem__, schedule, order, len(signal))
        assert [step.value for t, step in enumerate(steps) if schedule.is_full(t)] == [
            value for t, value in enumerate(signal) if schedule.is_full(t)
        ]

    @given(SCHEDULES, st.integers(0, 4))
    def test_as_many_snapshots_as_the_order_formed_needs(self, schedule, order):
        """An order is a difference of one snapshot more; the older ones weigh nothing, so what lies there is not read."""
        history, last = SnapshotHistory(order, order + 1), 0
        for step in schedule.full_steps_of(40):
            history, last = history.after_full(step, max(step - last, 1), schedule.warmup_steps), step
            formed = len(history.rows) - 1
            coefficients = history.forecast_coefficients(3)
            assert len(coefficients) == order + 1
            assert not any(coefficients[formed + 1 :])
            assert coefficients[formed] != 0

    @pytest.mark.parametrize("history", [DifferenceHistory(2), SnapshotHistory(2, 3)])
    def test_immutable(self, history):
        """A failed step leaves the history as it was."""
        before = history.after_full(0, 1, 1)
        coefficients = before.forecast_coefficients(2)
        before.after_full(5, 5, 1)
        assert before.forecast_coefficients(2) == coefficients


class TestStartUp:
    """Orders formed after each full step, by the official code's rule: none at steps up to warm-up - 2."""

    @pytest.mark.parametrize(
        ("warmup", "order", "expected"),
        [
            (3, 2, {0: 0, 1: 0, 2: 1, 7: 2, 12: 2}),
            (3, 4, {0: 0, 1: 0, 2: 1, 7: 2, 12: 3, 17: 4, 22: 4}),
            (1, 2, {0: 0, 5: 1, 10: 2, 15: 2}),
            (2, 2, {0: 0, 1: 1, 6: 2, 11: 2}),
            (3, 0, {0: 0, 1: 0, 2: 0, 7: 0}),
            (5, 2, {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 9: 2}),
        ],
    )
    def test_when_each_order_appears(self, warmup, order, expected):
        schedule = Schedule(5, warmup)
        steps = simulate(lambda t: 0.0, schedule, order, 23)
        assert {step: steps[step].formed for step in expected} == expected
        assert set(schedule.full_steps_of(max(expected) + 1)) == set(expected)

    @given(ORDERS, st.integers(1, 8), st.integers(1, 8))
    def test_formed_grows_by_one_up_to_the_order(self, order, warmup, interval):
        formed = [step.formed for step in simulate(lambda t: 0.0, Schedule(interval, warmup), order, 80)]
        assert all(b - a in (0, 1) for a, b in pairwise(formed))
        assert max(formed) <= order


class TestForecasts:
    @given(
        st.floats(-10, 10),
        st.floats(-10, 10),
        st.integers(1, 4),
        st.integers(1, 4),
        st.integers(1, 8),
        st.lists(st.integers(1, 6), min_size=1, max_size=8),
    )
    def test_a_straight_line_is_exact(self, offset, slope, order, warmup, interval, gaps):
        """As soon as order 1 is formed, for even and uneven gaps and whatever the order."""
        uneven = tuple(sum(gaps[:i]) for i in range(len(gaps) + 1))
        for schedule in (Schedule(interval, warmup), Schedule(full_steps=uneven)):
            steps = simulate(lambda t: offset + slope * t, schedule, order, 40)
            for t, step in enumerate(steps):
                if step.formed >= 1:
                    assert step.value == pytest.approx(offset + slope * t, abs=1e-6)

    @given(st.floats(-10, 10), ORDERS, st.integers(1, 6), st.integers(1, 8))
    def test_a_constant_is_exact_from_the_first_step(self, level, order, warmup, interval):
        steps = simulate(lambda t: level, Schedule(interval, warmup), order, 40)
        assert [step.value for step in steps] == pytest.approx([level] * 40)

    @given(st.integers(2, 6), st.integers(1, 4))
    def test_order_zero_repeats_the_last_full_step(self, interval, warmup):
        schedule = Schedule(interval, warmup)
        steps = simulate(lambda t: float(t * t), schedule, 0, 30)
        for t, step in enumerate(steps):
            last = max(full for full in schedule.full_steps_of(30) if full <= t)
            assert step.value == last * last

    @pytest.mark.parametrize(("distance", "off"), [(1, -5.0), (2, -10.0), (3, -15.0), (4, -20.0)])
    def test_a_parabola_is_off_by_what_the_method_says(self, distance, off):
        """On f(t) = t**2 with gap 5, order 2 is off by -10 at k = 2; backward differences lag by g * k."""
        steps = simulate(lambda t: float(t * t), Schedule(5, 1), 2, 50)
        t = 20 + distance
        assert steps[t].formed == 2
        assert steps[t].value - t * t == pytest.approx(off)

    def test_a_parabola_under_order_one(self):
        """The line through 15 and 20 at 22: 400 + 2 * 35 = 470, against 484."""
        assert simulate(lambda t: float(t * t), Schedule(5, 1), 1, 50)[22].value == 470.0
