"""How to choose, as the README and docs/choosing.md have it: few figures, each from a record."""

import json
from typing import Any

from benchmarks.fidelity.cells import PAPER, Cell
from benchmarks.fidelity.document import Figures, all_gains
from taylorseer_fx.bench import claims_report
from taylorseer_fx.bench.claims import GRANULARITIES, INTERVALS
from taylorseer_fx.bench.claims_report import Claims
from taylorseer_fx.bench.results import Report, Row, WorkloadResult
from taylorseer_fx.bench.tables import markdown_table
from taylorseer_fx.text import format_bytes

SHOWN = (
    ("`torch.compile`, every step", "torch.compile"),
    ("fewer steps, `torch.compile`", "fewer steps, compiled"),
    ("**taylorseer_fx, stack, order 1**", "ours, stack, order 1"),
    ("**taylorseer_fx, module, order 1**", "ours, module, order 1"),
    ("**taylorseer_fx, module, `speedup=6.25`**", "ours, module, order 1, speedup 6.25"),
    ("diffusers TaylorSeer, order 1, `torch.compile`", "diffusers TaylorSeer named, compiled"),
    ("cache-dit, order 1, `torch.compile`", "cache-dit, compiled"),
)


MODELS = ("digits", "fashion")
SMALL = 1.0  # dB
_PSNR = "psnr_db_of_first_500"  # of all cells; some have more samples, and no figure of those may stand beside one of these


def _trained_rows(source: dict[str, Any]) -> tuple[WorkloadResult, dict[str, Row]]:
    """The comparison on trained weights, and its rows by method."""
    result = next(entry for entry in Report.from_json(json.dumps(source)).workloads if entry.trained)
    return result, {row.method: row for row in result.rows}


def compared(source: dict[str, Any]) -> str:
    """The README's one table: the methods of ``SHOWN``."""
    result, rows = _trained_rows(source)
    shown = [(name, *_in_short(rows[method])) for name, method in SHOWN]
    columns = ("", "full steps", "speed-up", "PSNR, dB", "kept between steps")
    found = source["machine"]
    where = f"{found['cpu']}, {found['threads']} threads, torch {found['versions']['torch']}, {found['date']}"
    caption = f"Trained {result.workload} model, PSNR against the eager run. {where}."
    return f"{markdown_table(columns, shown)}\n\n{caption}"


def _in_short(row: Row) -> tuple[str, ...]:
    if not row.counts:
        raise ValueError(f"{row.method} is in the README's table and does not count: {row.status}")
    full = f"{len(row.full_steps)} of {row.num_steps}"
    return (full, f"{row.speedup:.2f}x", f"{row.psnr_db:.1f}", format_bytes(row.held_bytes or 0))


def choice(
    claims_source: dict[str, Any],
    comparison: dict[str, Any],
    benchmarks: dict[str, Any],
    digits: dict[str, Any],
    fashion: dict[str, Any],
) -> str:
    """How to choose, in six lines with the figures behind them; ``digits`` and ``fashion`` are the records of fidelity."""
    claims = Claims(claims_source)
    floor = next(row for row in benchmarks["benchmarks"] if row["name"] == "test_floor")
    rows = _trained_rows(comparison)[1]
    module, stack = rows["ours, module, order 1"], rows["ours, stack, order 1"]

    def db(method: str, order: int, interval: int) -> str:
        return f"{claims.value(_PSNR, method, order, interval):.1f}"

    full = [str(claims.cells["module", 1, interval]["full_steps"]) for interval in (3, 5, 10)]
    by_speed = ", ".join(db("module", 1, interval) for interval in (3, 5, 10))
    by_order = ", ".join(db("module", order, 5) for order in range(4))
    return "\n".join(
        [
            "- **Speed-up**: 3 for fidelity, 5 for speed. The paper's schedule, order 1, no guidance: "
            f"{', '.join(full)} full steps of 50 give {by_speed} dB.",
            _where(Figures({"cells": digits["cells"] | fashion["cells"], "headline": digits["headline"] | fashion["headline"]})),
            f"- **Order**: 1 or 2. With {full[1]} full steps of 50, orders 0 to 3 give {by_order} dB.",
            f'- **Granularity**: `"module"` as in the paper ({_speed_and_db(module)}), or `"stack"` ({_speed_and_db(stack)}), '
            f"with {len(module.full_steps)} of {module.num_steps} in full.",
            f"- **Memory**: {floor['workload']}, order {floor['order']}: {_kept(floor, 'module')}, {_kept(floor, 'stack')}.",
            f"- **Fewer steps instead**: {full[1]} steps, all in full, give {db('fewer steps', 0, 5)} dB.",
        ]
    )


def _where(figures: Figures) -> str:
    """What the place of the full steps is worth, and where it is worth nothing."""

    def db(kind: str) -> str:
        digits, fashion = (figures.headline(Cell(model, "module", 50, 2.0, 8, kind))["mean_db"] for model in MODELS)
        return f"{digits:.1f} dB ({fashion:.1f} on the fashion model)"

    gains = {
        key: gain for model in MODELS for name in GRANULARITIES for key, gain in all_gains(figures, model, name, PAPER).items()
    }
    least = min(gains, key=gains.__getitem__)
    few = sum(gain < SMALL for gain in gains.values())
    return (
        f"- **Place of the full steps**: with 8 of 50 the paper's schedule gives {db(PAPER)}, `speedup=` {db('default')}, "
        f"`calibrate` {db('calibrated')}. `speedup=` gains less than {SMALL:g} dB in {few} of {len(gains)} settings, such as "
        f"{least.num_full} of {least.num_steps} on the {least.model} model, {least.granularity}: {gains[least]:+.1f} dB."
    )


def _kept(floor: dict[str, Any], name: str) -> str:
    return f'{format_bytes(floor[name]["buffer_bytes"])} per stream with `"{name}"`'


def _speed_and_db(row: Row) -> str:
    return f"{row.speedup:.2f}x at {row.psnr_db:.1f} dB"


def orders(source: dict[str, Any]) -> str:
    """PSNR by interval and order, and what each order gains."""
    claims = Claims(source)
    gains = [f"{_range(claims, 2, 1)} for order 2 over order 1", f"{_range(claims, 3, 2)} for order 3 over order 2"]
    said = (
        f"In dB, over all intervals and both granularities: {', '.join(gains)}, {_range(claims, 4, 3)} for order 4 over order 3."
    )
    return f"{claims_report.table(claims, _PSNR)}\n\n{said}"


def _range(claims: Claims, order: int, lower: int) -> str:
    """The least and the most that an order gains over another."""
    found = [
        claims.value(_PSNR, name, order, interval) - claims.value(_PSNR, name, lower, interval)  # type: ignore[operator]
        for name in GRANULARITIES
        for interval in INTERVALS
    ]
    low, high = (round(each, 1) + 0.0 for each in (min(found), max(found)))  # no minus before a zero
    return f"{low:+.1f} to {high:+.1f}"


def granularity(comparison: dict[str, Any], benchmarks: dict[str, Any]) -> str:
    """What a feature per module and one for the stack cost and give."""
    floor = next(row for row in benchmarks["benchmarks"] if row["name"] == "test_floor")
    rows = _trained_rows(comparison)[1]
    name, order = floor["workload"], floor["order"]
    table = [
        (
            f"digits, order {n}: speed-up over `torch.compile`, PSNR",
            *(_speed_and_db(rows[f"ours, {g}, order {n}"]) for g in GRANULARITIES),
        )
        for n in (1, 2)
    ]
    shares = (f"{floor[granularity]['forecast_over_plain']:.2%}" for granularity in GRANULARITIES)
    sizes = (format_bytes(floor[granularity]["buffer_bytes"]) for granularity in GRANULARITIES)
    table += [
        (f"{name}, order {order}: forecast step over a step of plain `torch.compile`", *shares),
        (f"{name}, order {order}: buffers per stream", *sizes),
    ]
    return markdown_table(("", *GRANULARITIES), table)
