"""The recorded figures as a page of the documentation, and the aims that they reach."""

from collections.abc import Sequence
from typing import Any

PAGE = """# The code for a GPU, as it is generated

**Generated for {architecture}, not run.** Nothing on this page was measured on a GPU. `python -m benchmarks.cuda_codegen` traces
each model at full depth, has Inductor generate its code for an H100, compiles every Triton kernel, and counts: launches, the
bytes that all kernels and library calls read and write (a tensor once a kernel) over the fewest possible, and the registers and
spills of every configuration that a kernel may be launched with. bfloat16, order {order}, torch {torch}, triton {triton}, {date}.

*Before*: the graphs as the passes make them, with Inductor's own settings. *After*: lowered for the target "cuda"
(`passes/lower.py`).

{tables}

| aim | reached |
| --- | ---: |
{aims}

Registers are the most of any configuration, occupancy is the least that they leave room for, and a kernel counts as spilling if
one of its configurations does. Plain `torch.compile` has kernels of low occupancy, too: those that embed positions, and those
that read the convolution of the patches.
"""
HEADER = ("graph", "", "launches", "Triton", "library", "MB", "over the fewest", "copies", "spilling", "registers", "occupancy")


def page(result: dict[str, Any]) -> str:
    """The text of docs/cuda_codegen.md."""
    tables = "\n\n".join(f"{model['model']}:\n\n{_table(model['rows'])}" for model in result["models"])
    aims = "\n".join(f"| {text} | {'yes' if holds else 'no'} ({value}) |" for text, holds, value in aims_of(result))
    return PAGE.format(**result, tables=tables, aims=aims)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    rule = ["---", "---", *("---:" for _ in HEADER[2:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (HEADER, rule, *map(_cells, rows)))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["graph"],
        row["lowered"],
        str(row["launches"]),
        str(row["triton_launches"]),
        str(sum(row["library_calls"].values())),
        f"{row['megabytes']:.0f}",
        f"{row['over_floor']:.3f}",
        str(row["copies"]),
        str(row["spilling"]),
        str(row["max_registers"]),
        f"{row['min_occupancy']:.0%}",
    )


def aims_of(result: dict[str, Any]) -> list[tuple[str, bool, str]]:
    """What was aimed at, whether it is reached, and the figure that says so."""
    aims = []
    for model in result["models"]:
        after = {row["graph"]: row for row in model["rows"] if row["lowered"] != "before"}
        name, forecast, most = model["model"], after["forecast, module"], model["aims"]
        aims += [
            _at_most(name, "forecast", "launches", forecast, most["launches"]),
            _at_most(name, "forecast", "over_floor", forecast, most["over_floor"]),
            _at_most(name, "forecast", "spilling", forecast, 0),
            (f"{name}, forecast: occupancy at least 25 %", forecast["min_occupancy"] >= 0.25, f"{forecast['min_occupancy']:.0%}"),
            _at_most(name, "forecast of the stack", "launches", after["forecast, stack"], 20),
            _at_most(name, "full", "launches", after["full, module"], after["plain"]["launches"]),
            _at_most(name, "full", "copies", after["full, module"], 0),
        ]
    return aims


def _at_most(model: str, graph: str, figure: str, row: dict[str, Any], most: float) -> tuple[str, bool, str]:
    return f"{model}, {graph}: {figure.replace('_', ' ')} at most {most:g}", row[figure] <= most, f"{row[figure]:g}"
