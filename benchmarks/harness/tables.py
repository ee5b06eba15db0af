"""The comparison as people read it: a Markdown table, and the same columns for a terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taylorseer_fx.bench.results import Report, Row, WorkloadResult
from taylorseer_fx.text import format_bytes, format_flops

_Column = tuple[str, Callable[[Row], str]]


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _speedup(row: Row) -> str:
    if not row.counts:
        return "-"
    return f"{_number(row.speedup, '.2f', 'x')} ({_number(row.speedup_low, '.2f')}-{_number(row.speedup_high, '.2f')})"


def _method(row: Row) -> str:
    return row.method if row.counts else f"{row.method} ({row.status})"


_SHORT = {"cached nothing": "idle", "failed": "failed", "not installed": "absent"}  # told in full below the table
_KEPT: _Column = ("kept", lambda row: "-" if row.held_bytes is None else format_bytes(row.held_bytes))
_PEAK: _Column = ("peak", lambda row: "-" if row.peak_bytes is None else format_bytes(row.peak_bytes))
_SPEED: tuple[_Column, ...] = (
    ("method", _method),
    ("full steps", lambda row: f"{len(row.full_steps)} of {row.num_steps}" if row.num_steps else "-"),
    ("speed-up (min-max)", _speedup),
    ("ceiling", lambda row: _number(row.ceiling if row.counts else None, ".2f", "x")),
    ("realised", lambda row: _number(row.realised if row.counts else None, ".0%")),
    ("full, ms", lambda row: _number(row.full_step_ms, ".1f")),
    ("forecast, ms", lambda row: _number(row.forecast_step_ms, ".2f")),
    ("compile, s", lambda row: _number(row.compile_seconds, ".0f")),
    ("warm start, s", lambda row: _number(row.warm_start_seconds, ".0f")),
    _KEPT,
    _PEAK,
    ("graphs/breaks/recompiles", lambda row: f"{row.graphs}/{row.graph_breaks}/{row.recompiles}" if row.graphs else "-"),
    (
        "calls full/forecast",
        lambda row: f"{_calls(row.graph_calls_full)}/{_calls(row.graph_calls_forecast)}" if row.graphs else "-",
    ),
)
_QUALITY: tuple[_Column, ...] = (
    ("PSNR, dB", lambda row: _number(row.psnr_db, ".1f")),
    ("SSIM", lambda row: _number(row.ssim, ".4f")),
    ("class accuracy", lambda row: _number(row.class_accuracy, ".1%")),
    ("Frechet", lambda row: _number(row.frechet, ".3f")),
)
_OFF: tuple[_Column, ...] = (("off full run", lambda row: _number(row.relative_l2, ".2%")),)


_TERMINAL: tuple[_Column, ...] = (
    ("method", lambda row: row.method),
    ("full", lambda row: f"{len(row.full_steps)}/{row.num_steps}" if row.num_steps else "-"),
    ("speed-up", lambda row: _number(row.speedup, ".2f", "x") if row.counts else _SHORT[row.status]),
    ("realised", lambda row: _number(row.realised if row.counts else None, ".0%")),
)


def _calls(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def columns_of(result: WorkloadResult) -> tuple[_Column, ...]:
    """Pictures have PSNR and SSIM; for random weights only the distance from their own full run is reported."""
    fidelity = _QUALITY if result.trained else _OFF
    return (*_SPEED[:3], *fidelity, *_SPEED[3:])


def cells(result: WorkloadResult, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows; ``brief`` is as much as 80 columns of a terminal have room for."""
    columns = columns_of(result)
    if brief:
        columns = (*_TERMINAL, _QUALITY[0] if result.trained else ("off", _OFF[0][1]), _KEPT)
    return [name for name, _ in columns], [[render(row) for _, render in columns] for row in result.rows]


def markdown(report: Report) -> str:
    """The whole report."""
    return "\n\n".join(["# Comparison", machine(report), *map(workload_markdown, report.workloads)]) + "\n"


def workload_markdown(result: WorkloadResult) -> str:
    """One workload: table, verdict, what failed and why."""
    header, rows = cells(result)
    failed = [row for row in result.rows if row.reason]
    reasons = "\n".join(f"- {row.method}: {row.status}, {row.reason}" for row in failed)
    parts = [f"## {result.workload}", describe(result), markdown_table(header, rows), _frechet(result), result.verdict, reasons]
    return "\n\n".join(part for part in parts if part)


def _frechet(result: WorkloadResult) -> str:
    """Explain the column, where there is one."""
    samples = [row.frechet_samples for row in result.rows if row.frechet_samples]
    if not samples:
        return ""
    return (
        f"Frechet: distance from the real digits, {min(samples)} samples per row, in the features of a classifier fitted on "
        "them; not Inception FID. Guidance moves the run in full away from the real digits by this measure, so a row below it "
        "is not the better for it: what counts is how near a row is to torch.compile's."
    )


def describe(result: WorkloadResult) -> str:
    """Report what ran, in a sentence or two."""
    weights = "trained weights" if result.trained else "random weights"
    reduced = f" ({result.reduced})" if result.reduced else ""
    steps = ", ".join(map(str, result.schedule))
    smooth = (
        f"Along the trajectory, a step's latents are {result.reuse_error:.2%} off the next one's, and the line through the last "
        f"two is {result.line_error:.2%} off."
    )
    return (
        f"{weights}{reduced}, {result.num_steps} steps, {format_flops(result.plain_step_flops)} per step; full steps {steps}; "
        f"median of {result.rounds} rounds, each beside plain torch.compile. {smooth}"
    )


def recorded_on(source: Mapping[str, Any]) -> str:
    """When and on what a record that is no ``Report`` was made."""
    return f"{source['cpu']}, {source['threads']} threads, torch {source['torch']}, {source['date']}."


def machine(report: Report) -> str:
    """Report where, and when last: workloads can be recorded one by one."""
    found = report.machine
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    commit = f", commit {found['commit'][:10]}" if found.get("commit") else ""
    what = f"{found['cpu']}, {found['threads']} threads, Python {found['python']}, {versions}"
    return f"{what}; newest rows {found['date']}{commit}."


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, numbers to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))
