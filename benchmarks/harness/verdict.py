"""Is ours the fastest at equal full steps? Said in words, from the rows."""

from collections.abc import Sequence

from taylorseer_fx.bench.results import Row


def verdict(rows: Sequence[Row], schedule: Sequence[int]) -> str:
    """Rows that count and executed just ``schedule`` are compared; others that are as fast are named beside them."""
    ours = [row for row in rows if row.counts and row.family.startswith("ours") and row.speedup]
    if not ours:
        return "No row of ours counts: nothing can be said."
    best = max(ours, key=_speed)
    peers = [row for row in rows if row.counts and row.num_steps == best.num_steps and not row.family.startswith("ours")]
    same = [row for row in peers if row.full_steps == tuple(schedule)]
    others = sorted((row for row in same if _speed(row) >= _speed(best)), key=_speed, reverse=True)
    head = f"At the same {len(schedule)} full steps the fastest row is "
    if others:
        faster = "; ".join(f"{row.method}, {_speed(row):.2f}x{_quality(row)}" for row in others)
        text = f"{head}not ours ({best.method}, {_speed(best):.2f}x{_quality(best)}) but {faster}."
    else:
        next_best = max(same, key=_speed, default=None)
        beside = f", the next {next_best.method}, {_speed(next_best):.2f}x{_quality(next_best)}" if next_best else ""
        text = f"{head}ours: {best.method}, {_speed(best):.2f}x{_quality(best)}{beside}."
    elsewhere = [row for row in peers if row.full_steps != tuple(schedule) and _speed(row) >= _speed(best)]
    return " ".join(filter(None, [text, _elsewhere(elsewhere), _fewer(rows), _excluded(rows)]))


def _elsewhere(rows: Sequence[Row]) -> str:
    named = [f"{row.method}, {len(row.full_steps)} of them, {_speed(row):.2f}x{_quality(row)}" for row in rows]
    return f"As fast or faster at other full steps: {'; '.join(named)}." if named else ""


def _fewer(rows: Sequence[Row]) -> str:
    fewer = [row for row in rows if row.counts and row.family == "fewer steps" and row.speedup]
    if not fewer:
        return ""
    best = max(fewer, key=_speed)
    return f"Taking only as many steps ({best.method}) is {_speed(best):.2f}x{_quality(best)}."


def _excluded(rows: Sequence[Row]) -> str:
    idle = [row.method for row in rows if row.status == "cached nothing"]
    return f"Cached nothing, so not compared: {'; '.join(idle)}." if idle else ""


def _speed(row: Row) -> float:
    return row.speedup or 0.0


def _quality(row: Row) -> str:
    if row.psnr_db is not None:
        return f" at {row.psnr_db:.1f} dB"
    return f", {row.relative_l2:.1%} off" if row.relative_l2 is not None else ""
