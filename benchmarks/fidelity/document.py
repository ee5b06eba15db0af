"""The recorded figures as a page of the documentation, with its pictures."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.fidelity.cells import FULL, GRANULARITIES, GUIDANCES, HEADLINE, ORDERS, PAPER, STEPS, Cell, calibrations
from benchmarks.fidelity.subjects import SUBJECTS
from taylorseer_fx.bench.plots import STYLE
from taylorseer_fx.judging import WARMUPS
from taylorseer_fx.runtime.forecasters import FORECASTERS

PAPERS = tuple(f"paper, warm-up {warmup}" for warmup in WARMUPS)
HEADLINE_KINDS = (PAPER, "default", "calibrated", "fewer steps")

PAGE = """# Fidelity by the places of the full steps

Decibels (PSNR) of {count} pictures against the run in full from the same noise, mean and worst picture, on the two trained
models that ship in the package. The noise was used for nothing else. *paper* is the schedule of TaylorSeer's code: three full
steps, then one every N. *default* is `speedup=`, in gaps that grow (`runtime/placement.py`).
*calibrated* lists were found by `calibrate` on {calibration_count} pictures of other noise and five of the ten classes; all ten
are drawn here. *fewer steps* takes as many steps as the others execute, all in full. Order 1 unless stated. Made by
`python -m benchmarks.fidelity`.

![Decibels against speed-up](fidelity/speedup.png)

## Three settings, guidance 2

{headline_count} pictures of yet other noise: decibels, mean over pictures (worst picture).

{headline}

Frechet distance of the same pictures from the real ones, in a classifier's features (no Inception distance: compare the figures
of a row with each other only):

{frechet}

## Aims

On the digits, order 1, guidance 2; in dB over the paper's schedule of as many full steps, mean over pictures.

{aims}

## The default against the paper's schedule

The gain of `speedup=`, in dB on average, over the paper's schedule of as many full steps. A dash: warm-up 3 has no schedule of
that many.

{gains}

{summary}

## Calibrated

In dB, over the paper's schedules of as many full steps and over the default:

{calibrated}

## Forecasters

Guidance 2, modules; the paper's places of the full steps / the default's. `taylor` is TaylorSeer's recursion, `hermite` HiCache's
(arXiv 2508.16984), `newton` the polynomial through the last snapshots, `chebyshev` Spectrum's (arXiv 2603.01623) over four
snapshots.

{forecasters}

Measured with {machine}.
"""


class Figures:
    """What was recorded, by cell."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self._cells: dict[str, dict[str, Any]] = content["cells"]

    def __contains__(self, cell: Cell) -> bool:
        return self._key(cell) in self._cells

    def of(self, cell: Cell) -> dict[str, Any]:
        return self._cells[self._key(cell)]

    def mean(self, cell: Cell) -> float:
        value: float = self.of(cell)["mean_db"]
        return value

    def gain(self, cell: Cell, *others: str) -> float | None:
        """Decibels of ``cell`` over the best of the same setting by ``others``; None where none is there."""
        there = [other for kind in others if (other := Cell(*cell.setting, kind)) in self]
        return self.mean(cell) - max(map(self.mean, there)) if there and cell in self else None

    def headline(self, cell: Cell) -> dict[str, float]:
        """Of a setting on many pictures: "all_db", "mean_db", "worst_db" and "frechet"."""
        found: dict[str, float] = self.content["headline"][self._key(cell)]
        return found

    @staticmethod
    def _key(cell: Cell) -> str:
        """Runs in full, of fewer steps too, are the same for all granularities."""
        is_shared = cell.kind in ("fewer steps", "in full")
        return Cell(cell.model, GRANULARITIES[0], *cell.setting[2:], cell.kind).key if is_shared else cell.key


def page(content: dict[str, Any]) -> str:
    """The text of docs/fidelity.md."""
    figures = Figures(content)
    held_out, calibrated_on = content["settings"]["held_out"], content["settings"]["calibrated_on"]
    machine = content["machine"]
    return PAGE.format(
        count=held_out["count"],
        calibration_count=calibrated_on["count"],
        headline=_headline(figures),
        frechet=_frechet(figures),
        headline_count=held_out["count"] * content["settings"]["headline_batches"],
        aims=_table(
            ("aim", "reached"), [(text, f"{'yes' if holds else 'no'} ({value})") for text, holds, value in aims_of(figures)]
        ),
        gains=_gains(figures),
        summary=_summary(figures),
        calibrated=_calibrated(figures),
        forecasters=_forecasters(figures),
        machine=f"torch {machine['versions']['torch']}, float32, on a CPU",
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def _headline(figures: Figures) -> str:
    return _headline_table(figures, HEADLINE_KINDS, lambda found: f"{found['mean_db']:.1f} ({found['worst_db']:.1f})")


def _frechet(figures: Figures) -> str:
    return _headline_table(figures, ("in full", *HEADLINE_KINDS), lambda found: f"{found['frechet']:.2f}")


def _headline_table(figures: Figures, kinds: Sequence[str], text: Callable[[dict[str, float]], str]) -> str:
    """A row for each headline setting of both models, a column for each of ``kinds``."""
    rows = []
    for subject in SUBJECTS:
        for granularity in GRANULARITIES:
            for num_steps, num_full in HEADLINE:
                cells = [Cell(subject.name, granularity, num_steps, 2.0, num_full, kind) for kind in kinds]
                where = f"{num_full} of {num_steps}"
                rows.append((subject.name, granularity, where, *(text(figures.headline(cell)) for cell in cells)))
    return _table(("model", "granularity", "full steps", *(kind.removesuffix(", warm-up 3") for kind in kinds)), rows, left=3)


AIMS = {  # least gains in the headline settings
    ("module", "default"): (1.0, 2.0, 4.0),
    ("stack", "default"): (2.0, 3.0, 5.0),
    ("module", "calibrated"): (1.8, 4.0, 5.5),
    ("stack", "calibrated"): (2.5, 4.3, 6.5),
}
LEAST_OF_ANY, LEAST_CALIBRATED = -0.5, -0.2  # in any cell, of the mean over pictures


def aims_of(figures: Figures) -> list[tuple[str, bool, str]]:
    """What was aimed at on the digits, whether it is reached, and the figure that shows it."""
    aims = []
    for (granularity, kind), least in AIMS.items():
        for (num_steps, num_full), aim in zip(HEADLINE, least, strict=True):
            ours, paper = (
                figures.headline(Cell("digits", granularity, num_steps, 2.0, num_full, each))["mean_db"] for each in (kind, PAPER)
            )
            aims.append(_at_least(f"{kind}, {granularity}, {num_full} of {num_steps}", ours - paper, aim))
    for granularity in GRANULARITIES:
        gains = all_gains(figures, "digits", granularity, PAPER)
        aims.append(_at_least(f"default, {granularity}, any of {len(gains)} cells", min(gains.values()), LEAST_OF_ANY))
        cells = [
            Cell("digits", granularity, num_steps, guidance, number, "calibrated")
            for num_steps, guidance, numbers in calibrations()
            for number in numbers
        ]
        found = [gain for cell in cells if (gain := figures.gain(cell, PAPER)) is not None]
        aims.append(_at_least(f"calibrated, {granularity}, any of {len(found)} cells", min(found), LEAST_CALIBRATED))
        ten = figures.headline(Cell("digits", granularity, 50, 2.0, 10, PAPER))["mean_db"]
        eight = figures.headline(Cell("digits", granularity, 50, 2.0, 8, "default"))["mean_db"]
        aims.append(_at_least(f"default, {granularity}, 8 of 50 over the paper's 10 of 50", eight - ten, 0.0))
    return aims


def _at_least(text: str, value: float, least: float) -> tuple[str, bool, str]:
    return f"{text}: at least {least:+.1f}", round(value, 2) >= least, f"{value:+.2f}"


def _gains(figures: Figures) -> str:
    parts = []
    for subject in SUBJECTS:
        for granularity in GRANULARITIES:
            rows = [
                (
                    str(num_steps),
                    f"{guidance:g}",
                    *(
                        _signed(figures.gain(Cell(subject.name, granularity, num_steps, guidance, number, "default"), PAPER))
                        for number in FULL
                    ),
                )
                for num_steps in STEPS
                for guidance in sorted(GUIDANCES)
            ]
            header = ("steps", "guidance", *(f"{number} full" for number in FULL))
            parts.append(f"{subject.title}, {granularity}:\n\n{_table(header, rows, left=2)}")
    return "\n\n".join(parts)


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f}"


def all_gains(figures: Figures, model: str, granularity: str, *others: str) -> dict[Cell, float]:
    """What the default gains in each cell that one of ``others`` has a schedule for."""
    cells = (
        Cell(model, granularity, num_steps, guidance, number, "default")
        for num_steps in STEPS
        for guidance in GUIDANCES
        for number in FULL
    )
    return {cell: gain for cell in cells if (gain := figures.gain(cell, *others)) is not None}


def _summary(figures: Figures) -> str:
    rows = []
    for subject in SUBJECTS:
        for granularity in GRANULARITIES:
            for name, others in (("warm-up 3", (PAPER,)), ("the best of warm-up 1, 2, 3", PAPERS)):
                gains = all_gains(figures, subject.name, granularity, *others)
                worst = min(gains, key=gains.__getitem__)
                where = f"{worst.num_full} of {worst.num_steps}, guidance {worst.guidance:g}"
                mean = sum(gains.values()) / len(gains)
                rows.append((subject.name, granularity, name, str(len(gains)), f"{mean:+.1f}", f"{gains[worst]:+.1f} ({where})"))
    return _table(("model", "granularity", "over", "cells", "mean gain", "least gain"), rows, left=3)


def _calibrated(figures: Figures) -> str:
    rows = []
    for subject in SUBJECTS:
        for granularity in GRANULARITIES:
            for num_steps, guidance, numbers in calibrations():
                for number in numbers:
                    cell = Cell(subject.name, granularity, num_steps, guidance, number, "calibrated")
                    gains = [figures.gain(cell, PAPER), figures.gain(cell, *PAPERS), figures.gain(cell, "default")]
                    where = f"{number} of {num_steps}"
                    rows.append((subject.name, granularity, where, f"{guidance:g}", *map(_signed, gains)))
    header = ("model", "granularity", "full steps", "guidance", "over warm-up 3", "over the best of three", "over the default")
    return _table(header, rows, left=4)


def _forecasters(figures: Figures) -> str:
    rows = []
    for subject in SUBJECTS:
        for forecaster in FORECASTERS:
            for order in ORDERS:
                pairs = [
                    [
                        figures.mean(Cell(subject.name, GRANULARITIES[0], num_steps, 2.0, number, kind, order, forecaster))
                        for kind in (PAPER, "default")
                    ]
                    for num_steps, number in HEADLINE
                ]
                rows.append((subject.name, forecaster, str(order), *(f"{paper:.1f} / {ours:.1f}" for paper, ours in pairs)))
    return _table(("model", "forecaster", "order", *(f"{number} of {steps}" for steps, number in HEADLINE)), rows, left=3)


def save_plots(content: dict[str, Any], folder: Path) -> None:
    """Decibels against speed-up, a panel for each model and length of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = Figures(content)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 7.5), layout="constrained")
        panels = figure.subplots(2, 2)
        for row, subject in zip(panels, SUBJECTS, strict=True):
            for axis, num_steps in zip(row, (28, 50), strict=True):
                _panel(axis, figures, subject.name, num_steps)
                axis.set_title(f"{subject.title}, {num_steps} steps, guidance 2")
        handles, labels = panels[0][1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.savefig(folder / "speedup.png", dpi=110)


LINES = {PAPER: "o", "default": "s", "calibrated": "^"}
COLOURS = {"module": "#4c78a8", "stack": "#e4572e"}
DASHES: dict[str, Any] = {PAPER: (0, (2, 2)), "default": "-", "calibrated": (0, (6, 2))}


def _panel(axis: Any, figures: Figures, model: str, num_steps: int) -> None:
    for granularity in GRANULARITIES:
        for kind, marker in LINES.items():
            label = f"{kind.removesuffix(', warm-up 3')}, {granularity}"
            _line(axis, figures, model, granularity, num_steps, kind, marker, COLOURS[granularity], label)
    _line(axis, figures, model, GRANULARITIES[0], num_steps, "fewer steps", "x", "gray", "fewer steps")
    axis.set_xlabel("steps / full steps")
    axis.set_ylabel("mean PSNR against the run in full, dB")


def _line(
    axis: Any,
    figures: Figures,
    model: str,
    granularity: str,
    num_steps: int,
    kind: str,
    marker: str,
    colour: str,
    label: str,
) -> None:
    cells = [Cell(model, granularity, num_steps, 2.0, number, kind) for number in FULL]
    there = [cell for cell in cells if cell in figures]
    x, y = [num_steps / cell.num_full for cell in there], [figures.mean(cell) for cell in there]
    axis.plot(x, y, marker=marker, markersize=4, linestyle=DASHES.get(kind, ":"), linewidth=1.2, color=colour, label=label)
