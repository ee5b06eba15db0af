"""Is ours the fastest at equal full steps? The answer in words, from the rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from taylorseer_fx.bench.results import Row


@dataclass(frozen=True)
class Standing:
    """Rows that count. ``ours``: the fastest of ours that executed just the schedule. ``same``: others that did. ``elsewhere``:
    those that executed other steps and are as fast. ``fewer``: the fastest that takes only as many steps. All from fast to slow.
    """

    ours: Row
    same: tuple[Row, ...]
    elsewhere: tuple[Row, ...]
    fewer: Row | None

    @property
    def faster(self) -> tuple[Row, ...]:
        """The rows of ``same`` that are as fast as ours or faster."""
        return tuple(row for row in self.same if _speed(row) >= _speed(self.ours))


def standing(rows: Sequence[Row], schedule: Sequence[int]) -> Standing | None:
    """Compare the rows; None if no row of ours counts."""
    counted = sorted((row for row in rows if row.counts and row.speedup), key=_speed, reverse=True)
    mine = [row for row in counted if row.family.startswith("ours") and row.full_steps == tuple(schedule)]
    ours = mine[0] if mine else None
    if ours is None:
        return None
    peers = [row for row in counted if row.num_steps == ours.num_steps and not row.family.startswith("ours")]
    return Standing(
        ours,
        tuple(row for row in peers if row.full_steps == tuple(schedule)),
        tuple(row for row in peers if row.full_steps != tuple(schedule) and _speed(row) >= _speed(ours)),
        next((row for row in counted if row.family == "fewer steps"), None),
    )


def verdict(rows: Sequence[Row], schedule: Sequence[int]) -> str:
    """Rows that count and executed just ``schedule`` are compared; others that are as fast are named beside them."""
    found = standing(rows, schedule)
    if found is None:
        return "No row of ours counts, so there is nothing to compare."
    head = f"At the same {len(schedule)} full steps the fastest row is "
    if found.faster:
        text = f"{head}not ours ({_told(found.ours)}) but {'; '.join(map(_told, found.faster))}."
    else:
        beside = f", the next {_told(found.same[0])}" if found.same else ""
        text = f"{head}ours: {_told(found.ours)}{beside}."
    return " ".join(filter(None, [text, _elsewhere(found.elsewhere), _fewer(found.fewer), _excluded(rows)]))


def _elsewhere(rows: Sequence[Row]) -> str:
    named = [f"{row.method}, {len(row.full_steps)} of them, {_speed(row):.2f}x{_quality(row)}" for row in rows]
    return f"As fast or faster at other full steps: {'; '.join(named)}." if named else ""


def _fewer(row: Row | None) -> str:
    return f"Taking only as many steps ({row.method}) is {_speed(row):.2f}x{_quality(row)}." if row else ""


def _excluded(rows: Sequence[Row]) -> str:
    idle = [row.method for row in rows if row.status == "cached nothing"]
    return f"Cached nothing, so not compared: {'; '.join(idle)}." if idle else ""


def _told(row: Row) -> str:
    return f"{row.method}, {_speed(row):.2f}x{_quality(row)}"


def _speed(row: Row) -> float:
    return row.speedup or 0.0


def _quality(row: Row) -> str:
    if row.psnr_db is not None:
        return f" at {row.psnr_db:.1f} dB"
    return f", {row.relative_l2:.1%} off" if row.relative_l2 is not None else ""
