"""Three pictures a workload: speed-up against PSNR, error along the trajectory, time of a step."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from taylorseer_fx.bench.results import Report, Row, WorkloadResult

STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
_DASHES: tuple[Any, ...] = ("-", (0, (6, 3)), (0, (2, 3)), (0, (8, 3, 2, 3)))
_PLACES = ((-18, -12), (6, -12), (6, 5), (-4, -17), (-18, 5))  # of labels about their points, in points
SHOWN_DB = 20.0  # below the best; what lies deeper is named in the legend
_MARKERS = "osD^vPX*<>hpd"


def save_plots(report: Report, folder: Path) -> list[Path]:
    """PNGs under ``folder``; a plot that no row counts for is not drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with mpl.rc_context(STYLE):
        for result in report.workloads:
            stem = "".join(letter if letter.isalnum() else "-" for letter in result.workload.lower())
            for name, draw in (("quality", _quality), ("trajectory", _trajectory), ("steps", _steps)):
                figure = draw(result)
                if figure is not None:
                    path = folder / f"{stem}-{name}.png"
                    figure.savefig(path, dpi=120)
                    written.append(path)
    return written


def _colours(result: WorkloadResult) -> dict[str, tuple[Any, str]]:
    """A colour and a marker a family, the same in all pictures of a workload."""
    families = list(dict.fromkeys(row.family for row in result.rows))
    palette = [mpl.colormaps["tab20"](i) for i in range(20)]
    return {family: (palette[(2 * i + 2 * i // 20) % 20], _MARKERS[i % len(_MARKERS)]) for i, family in enumerate(families)}


def _quality(result: WorkloadResult) -> Figure | None:
    rows = [row for row in result.rows if row.counts and row.psnr_db is not None and row.ceiling and row.ceiling > 1.01]
    if not rows:
        return None
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    axis = figure.subplots()
    colours = _colours(result)
    lowest = max(row.psnr_db or 0.0 for row in rows) - SHOWN_DB
    for family in dict.fromkeys(row.family for row in rows):
        mine = sorted((row for row in rows if row.family == family), key=lambda row: row.method)  # ours by order
        colour, marker = colours[family]
        x, y = [row.speedup or 0.0 for row in mine], [row.psnr_db or 0.0 for row in mine]
        label = family if max(y) >= lowest else f"{family} ({max(y):.1f} dB, below)"
        axis.plot(x, y, marker=marker, color=colour, label=label, linewidth=1, markersize=7)
        if family.startswith("ours"):
            _label(axis, mine, colour)
    axis.set_xlabel("speed-up over torch.compile with every step in full")
    axis.set_ylabel("PSNR against the full run, dB")
    axis.set_title(f"{result.workload}: {len(result.schedule)} full steps of {result.num_steps} unless labelled")
    axis.set_ylim(bottom=max(lowest, axis.get_ylim()[0]))
    figure.legend(loc="outside right upper")
    return figure


def _label(axis: Any, rows: Sequence[Row], colour: Any) -> None:
    """Label rows by order, or by the number of full steps where that differs."""
    for row, place in zip(rows, itertools.cycle(_PLACES)):
        order = row.method.rpartition("order ")[2]
        label = f"O{order}" if order.isdigit() else f"{len(row.full_steps)} full"
        axis.annotate(label, (row.speedup, row.psnr_db), xytext=place, textcoords="offset points", color=colour, fontsize=8)


def _trajectory(result: WorkloadResult) -> Figure | None:
    """One line a family: its best row, since compiled and eager forms of one method lie upon each other."""
    rows = [row for row in result.rows if row.counts and max(row.trajectory_error, default=0.0) > 1e-4]
    best: dict[str, Row] = {}
    for row in rows:
        if row.family not in best or (row.relative_l2 or 0) < (best[row.family].relative_l2 or 0):
            best[row.family] = row
    if not best:
        return None
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    axis = figure.subplots()
    colours = _colours(result)
    for number, (family, row) in enumerate(best.items()):
        steps = range(len(row.trajectory_error))
        errors = [max(error, 1e-6) for error in row.trajectory_error]
        dashes = _DASHES[number % len(_DASHES)]  # of lines that lie upon one another, each is seen
        axis.plot(steps, errors, color=colours[family][0], label=row.method, linewidth=1.6, linestyle=dashes)
    for step in result.schedule:
        axis.axvline(step, color="black", alpha=0.08, linewidth=1)
    axis.set_yscale("log")
    axis.set_ylim(bottom=1e-4)
    axis.set_xlabel("step (vertical lines: full steps; the last point: the result)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("relative L2 distance from the full run's latents")
    axis.set_title(f"{result.workload}: error along the trajectory")
    figure.legend(loc="outside right upper", fontsize=9)
    return figure


def _steps(result: WorkloadResult) -> Figure | None:
    rows = [row for row in result.rows if row.counts and row.full_step_ms]
    if not rows:
        return None
    figure = Figure(figsize=(10, 0.6 + 0.34 * len(rows) + 0.8), layout="constrained")
    axis = figure.subplots()
    places = range(len(rows), 0, -1)
    axis.barh([p + 0.2 for p in places], [row.full_step_ms or 0 for row in rows], 0.38, label="full step", color="#4c78a8")
    axis.barh(
        [p - 0.2 for p in places], [row.forecast_step_ms or 0 for row in rows], 0.38, label="forecast step", color="#f58518"
    )
    for place, row in zip(places, rows, strict=True):
        if row.forecast_step_ms:
            axis.annotate(
                f"{row.forecast_step_ms:.2f}",
                (row.forecast_step_ms, place - 0.2),
                xytext=(4, -3),
                textcoords="offset points",
                fontsize=8,
            )
    axis.set_yticks(list(places), [row.method for row in rows])
    axis.set_ylim(0.4, len(rows) + 0.6)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("milliseconds of the transformer's calls in a step, median")
    axis.set_title(f"{result.workload}: time of a step")
    figure.legend(loc="outside lower right", ncols=2)
    return figure
