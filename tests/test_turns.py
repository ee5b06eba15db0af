"""What takes turns has its turn."""

from datetime import date, timedelta

import pytest

from tests.turns import has_turn

NEW_YEAR = date(2026, 12, 20)  # soon after: weeks are counted on


@pytest.mark.parametrize("weeks", [2, 3, 4, 5, 6, 12, 36])
def test_all_in_so_many_weeks(weeks):
    """Every entry once, wherever one begins; and every day of a week runs the same."""
    days = [NEW_YEAR + timedelta(days=i) for i in range(7 * weeks)]
    for position in range(40):
        turns = [day for day in days if has_turn(position, weeks, day)]
        assert len(turns) == 7
        assert {has_turn(position, weeks, day) for day in days if day.isocalendar()[:2] == turns[0].isocalendar()[:2]} == {True}


@pytest.mark.parametrize("weeks", [2, 3, 4, 5, 6, 12, 36])
def test_a_share_of_them_each_week(weeks):
    for i in range(60):
        count = sum(has_turn(position, weeks, NEW_YEAR + timedelta(weeks=i)) for position in range(100))
        assert 100 // weeks <= count <= 100 // weeks + 1
