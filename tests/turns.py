"""Wide tables and slow tests take turns: each is run in one week of several, and all of them with ``pytest --all-variants``.

Tracing and compiling a hundred models would take half an hour; what one week leaves out, another runs.
"""

from collections.abc import Iterable
from datetime import date
from typing import Any

import pytest


def has_turn(position: int, weeks: int, day: date) -> bool:
    """Is it the turn of the entry at ``position``, one week in ``weeks``? Weeks are counted on from year to year."""
    week = (day.toordinal() - 1) // 7
    return (week + position) % weeks == 0


def in_turns(entries: Iterable[Any], weeks: int) -> list[Any]:
    """Parameters of a test; an entry that is a tuple is of several arguments."""
    return [
        pytest.param(*(entry if isinstance(entry, tuple) else (entry,)), marks=pytest.mark.turn(i, weeks))
        for i, entry in enumerate(entries)
    ]


def skip_in_other_weeks(items: Iterable[pytest.Item], day: date) -> None:
    """Mark those whose turn is not in the week of ``day``."""
    for item in items:
        mark = item.get_closest_marker("turn")
        if mark is not None and not has_turn(*mark.args, day):
            item.add_marker(pytest.mark.skip("its turn is in another week, or with --all-variants"))
