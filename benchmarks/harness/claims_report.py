"""The recorded cells of ``claims`` as tables, a verdict and a picture."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from taylorseer_fx.bench.claims import FEWER_SAMPLES, GRANULARITIES, INTERVALS, ORDERS
from taylorseer_fx.bench.plots import STYLE
from taylorseer_fx.bench.tables import markdown_table

MEASURES = {  # those of the first samples are of all cells, so that each cell may be compared with each other one
    "psnr_db_of_first_500": f"PSNR against the run in full, dB, first {FEWER_SAMPLES} samples",
    "psnr_db": "PSNR against the run in full, dB, all samples",
    "frechet_of_first_500": f"Frechet distance, first {FEWER_SAMPLES} samples",
    "frechet": "Frechet distance, all samples",
}


@dataclass(frozen=True)
class Claims:
    """The cells by (method, order, interval); those of fewer samples only where there are no others."""

    content: Mapping[str, Any]

    @property
    def cells(self) -> dict[tuple[str, int, int], dict[str, Any]]:
        found: dict[tuple[str, int, int], dict[str, Any]] = {}
        for cell in sorted(self.content["cells"].values(), key=lambda cell: int(cell["num_samples"])):
            found[cell["method"], cell["order"], cell["interval"]] = cell
        return found

    def value(self, measure: str, method: str, order: int, interval: int) -> float | None:
        """None where the cell is missing, or was drawn from fewer samples than others are shown with."""
        cell = self.cells.get((method, order, interval))
        num_samples = self.content["settings"]["num_samples"]
        if cell is None or (not _is_of_first(measure) and cell["num_samples"] < num_samples):
            return None
        found: float | None = cell[measure]
        return found


def _is_of_first(measure: str) -> bool:
    return measure.endswith(f"_of_first_{FEWER_SAMPLES}")


def _is_psnr(measure: str) -> bool:
    return measure.startswith("psnr")


def table(claims: Claims, measure: str) -> str:
    """Intervals down, orders across; without the columns of which no cell was recorded."""
    header = ["N", "full steps", "fewer steps", *(f"{name}, O{order}" for name in GRANULARITIES for order in ORDERS)]
    form, rows = ".1f" if _is_psnr(measure) else ".3f", []
    for interval in INTERVALS:
        full_steps = {cell["full_steps"] for key, cell in claims.cells.items() if key[2] == interval}
        values = [claims.value(measure, "fewer steps", 0, interval)]
        values += [claims.value(measure, name, order, interval) for name in GRANULARITIES for order in ORDERS]
        if full_steps and any(value is not None for value in values):
            shown = ["-" if value is None else f"{value:{form}}" for value in values]
            rows.append([str(interval), str(full_steps.pop()), *shown])
    columns = [column for column in zip(header, *rows, strict=True) if set(column[1:]) != {"-"}]
    header, *rows = (list(line) for line in zip(*columns, strict=True))
    return markdown_table(header, rows)


def verdict(claims: Claims, measures: Sequence[str] = tuple(MEASURES)) -> str:
    """Report where order 1 and up beats reuse, and by how much; and where forecasting beats fewer steps."""
    return "\n".join(
        f"- {name}, {MEASURES[measure]}: {line}"
        for name in GRANULARITIES
        for measure in measures
        for line in _verdict(claims, name, measure)
    )


def _verdict(claims: Claims, name: str, measure: str) -> Iterator[str]:
    sign = 1 if _is_psnr(measure) else -1
    gains: dict[int, float] = {}
    over_fewer: dict[int, float] = {}
    for interval in INTERVALS:
        reuse = claims.value(measure, name, 0, interval)
        orders = [claims.value(measure, name, order, interval) for order in ORDERS[1:]]
        best = max((sign * value for value in orders if value is not None), default=None)
        fewer = claims.value(measure, "fewer steps", 0, interval)
        if reuse is not None and best is not None:
            gains[interval] = best - sign * reuse
            if fewer is not None:
                over_fewer[interval] = max(best, sign * reuse) - sign * fewer
    form = "+.2f" if _is_psnr(measure) else "+.3f"
    yield f"the best order of 1 and up over reuse (order 0): {_gains(gains, form)}"
    yield f"the best order over fewer steps at equal compute: {_gains(over_fewer, form)}"


def _gains(gains: Mapping[int, float], form: str) -> str:
    if not gains:
        return "nothing recorded."
    worse = [interval for interval, gain in gains.items() if gain <= 0]
    head = "better at every interval" if not worse else f"not better at N = {', '.join(map(str, worse))}"
    return f"{head}; " + ", ".join(f"{gain:{form}} (N={interval})" for interval, gain in gains.items()) + "."


def _introduction(claims: Claims) -> str:
    """What was drawn and measured, and what the run in full and the real pictures have."""
    settings = claims.content["settings"]
    full = claims.cells.get(("full", 0, 1))
    said = f"{full['frechet']:.3f}, class accuracy {full['class_accuracy']:.1%}" if full else "not recorded"
    num_samples, halves = settings["num_samples"], claims.content.get("frechet_between_real_halves")
    fewer = f" ({FEWER_SAMPLES} in those of other intervals and orders)" if num_samples > FEWER_SAMPLES else ""
    return (
        f"The {settings['model']} model, {settings['num_steps']} steps without guidance, warm-up {settings['warmup']}, "
        f"{num_samples:,} samples per cell{fewer}. Frechet distance is between generated and real pictures in the features of a "
        f"small network fitted on the real ones: not Inception FID. The run in full has {said}"
        + (f"; one half of the real digits is {halves:.3f} from the other." if halves is not None else ".")
    )


def markdown(content: Mapping[str, Any], measures: Sequence[str] = tuple(MEASURES)) -> str:
    """Introduction, tables and verdict of ``measures``; none twice where all cells have only the first samples."""
    claims = Claims(content)
    if content["settings"]["num_samples"] <= FEWER_SAMPLES:
        measures = [measure for measure in measures if not _is_of_first(measure)]
    tables = (f"**{MEASURES[measure]}**\n\n{table(claims, measure)}" for measure in measures)
    return "\n\n".join([_introduction(claims), *tables, verdict(claims, measures)])


def save_picture(content: Mapping[str, Any], path: Path) -> None:
    """Draw Frechet distance and PSNR over the interval, one line per order."""
    claims, num_samples = Claims(content), min(FEWER_SAMPLES, content["settings"]["num_samples"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 7.5), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True, sharey="row")
        for row, (measure, label) in enumerate(
            (("frechet_of_first_500", "Frechet distance"), ("psnr_db_of_first_500", "PSNR against full run, dB"))
        ):
            for column, name in enumerate(GRANULARITIES):
                _panel(axes[row][column], claims, measure, name)
                axes[1][column].set_xlabel("interval N")
                axes[0][column].set_title(name)
            axes[row][0].set_ylabel(f"{label} (first {num_samples})")
        axes[0][0].set_yscale("log")
        for axis in (axes[0][0].yaxis, axes[0][1].yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.savefig(path, dpi=110)


def _panel(axis: Any, claims: Claims, measure: str, name: str) -> None:
    for order in ORDERS:
        colour = mpl.colormaps["viridis"](order / len(ORDERS))
        _line(axis, [claims.value(measure, name, order, n) for n in INTERVALS], f"order {order}", color=colour, marker="o")
    fewer = [claims.value(measure, "fewer steps", 0, n) for n in INTERVALS]
    _line(axis, fewer, "fewer steps", color="black", linestyle="--")
    full = claims.cells.get(("full", 0, 1))
    if full is not None and full[measure] is not None:
        axis.axhline(full[measure], color="grey", linewidth=1, label="full run")


def _line(axis: Any, values: Sequence[float | None], label: str, **style: Any) -> None:
    points = [(n, value) for n, value in zip(INTERVALS, values, strict=True) if value is not None]
    if points:
        axis.plot(*zip(*points, strict=True), label=label, markersize=4, linewidth=1.4, **style)
