"""``taylorseer-fx bench`` from start to end."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from taylorseer_fx.bench.measure import MeasureSettings
from taylorseer_fx.bench.plots import save_plots
from taylorseer_fx.bench.results import Report, WorkloadResult
from taylorseer_fx.bench.suite import entries, run_suite
from taylorseer_fx.bench.tables import cells, describe, machine, markdown


def run_bench(names: Sequence[str], settings: MeasureSettings, out: Path, console: Console, methods: str = "main") -> Report:
    """Measure, print, and write ``comparison.json``, ``comparison.md`` and the plots under ``out``."""
    report = _measured(names, settings, console, methods)
    write_documents(report, out)
    (out / "comparison.json").write_text(report.to_json())
    for result in report.workloads:
        print_result(result, console)
    console.print(f"[dim]{machine(report)}[/dim]", highlight=False)
    console.print(f"written   {out}/comparison.json, comparison.md and plots", highlight=False)
    return report


def write_documents(report: Report, out: Path) -> None:
    """Table and plots."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "comparison.md").write_text(markdown(report))
    save_plots(report, out)


def _measured(names: Sequence[str], settings: MeasureSettings, console: Console, methods: str) -> Report:
    columns = (SpinnerColumn(), TextColumn("{task.description:<52}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    known = entries()
    with Progress(*columns, console=console) as bars:
        tasks = {}
        for name in names:
            tasks[name] = bars.add_task(name, total=len(known[name].methods(methods)))
        begun: set[str] = set()

        def on_method(name: str, method: str) -> None:
            if name in begun:
                bars.advance(tasks[name])
            begun.add(name)
            bars.update(tasks[name], description=f"{name}: {method}")

        report = run_suite(names, settings, on_method, methods)
        for name, task in tasks.items():
            bars.update(task, description=name, completed=bars.tasks[task].total)
    return report


def print_result(result: WorkloadResult, console: Console) -> None:
    """Table, verdict, reasons."""
    console.rule(f"[bold]{result.workload}[/bold]")
    console.print(describe(result), highlight=False)
    header, lines = cells(result, brief=True)
    table = Table(header_style="bold", box=None, pad_edge=False)
    for i, name in enumerate(header):
        width = max(len(line[i]) for line in (header, *lines))  # of numbers all is shown, a method's name may be broken
        table.add_column(name, justify="right" if i else "left", min_width=width if i else None)
    for row, line in zip(result.rows, lines, strict=True):
        table.add_row(*line, style="" if row.counts else "dim")
    console.print(table)
    for row in result.rows:
        if row.reason:
            console.print(f"  {row.method}: {row.status}, {row.reason}", style="dim", highlight=False, markup=False)
    console.print(result.verdict, highlight=False)
