"""The demo from start to end."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from taylorseer_fx.demo.picture import save_picture
from taylorseer_fx.demo.results import HEADINGS, Row, measure
from taylorseer_fx.demo.runs import DemoConfig, compiled, eager, forecast, generate_in_turns, start_compiler


def run_demo(config: DemoConfig, out: Path, console: Console, json_out: Path | None = None) -> None:
    """Generate three ways, print the table, write the picture to ``out`` and the numbers to ``json_out``."""
    console.print(
        f"{config.model.title}: {len(config.labels)} pictures, {config.num_steps} steps with guidance, from the same noise, "
        f"three ways (torch {torch.__version__}, {torch.get_num_threads()} CPU threads)"
    )
    columns = (SpinnerColumn(), TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("starting the compiler", total=1)
        start_compiler()
        bars.advance(task)
        contestants = []
        for make in (eager, compiled, forecast):
            task = bars.add_task(f"getting ready: {make.__name__}", total=1)
            contestants.append(make(config))
            bars.advance(task)
        task = bars.add_task("denoising, in turns", total=config.num_steps)
        runs = generate_in_turns(contestants, config, lambda: bars.advance(task))
    rows = measure(runs, config)
    schedule = config.schedule.describe(config.num_steps)
    console.print(_table(rows))
    console.print(f"schedule  {schedule}   (F full step, T Taylor forecast)")
    save_picture(out, runs, [_caption(row) for row in rows])
    console.print(f"picture   {out}")
    if json_out is not None:
        content = {"num_images": len(config.labels), "num_steps": config.num_steps, "order": config.order, "schedule": schedule}
        json_out.write_text(json.dumps({**content, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


def _caption(row: Row) -> str:
    return f"{row.seconds:.1f} s" if row.psnr_db is None else f"{row.seconds:.1f} s, {row.speedup_over_eager:.2f}x over eager"


def _table(rows: Sequence[Row]) -> Table:
    """Measures down, ways of generating across: it fits a terminal of 80 columns."""
    table = Table(header_style="bold")
    for i, line in enumerate(zip(HEADINGS, *(row.cells() for row in rows), strict=True)):
        if i == 0:
            for j, heading in enumerate(line):
                table.add_column(heading, justify="right" if j else "left")
        else:
            table.add_row(*line)
    return table
