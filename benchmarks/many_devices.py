"""The tables of what several processes do: fleets, and models that ranks share."""

from typing import Any

from taylorseer_fx.bench.tables import markdown_table, recorded_on
from taylorseer_fx.text import format_bytes, format_flops


def fleet(source: dict[str, Any]) -> str:
    """What a fleet of two workers did, one of which was killed."""
    compiled, found, *replacing = source["workers"]
    ratio = compiled["first_call_seconds"] / found["first_call_seconds"]
    resumed, settings = source["resumed"], source["settings"]
    equal = "equal bit for bit to one process" if source["bit_equal"] else "NOT equal to one process"
    rows = [
        ("one of two workers killed in mid-generation", f"{source['rows']} rows, {source['distinct']} different ones, {equal}"),
        ("first batch of the worker that compiles, cache empty", f"{compiled['first_call_seconds']:.1f} s"),
        ("first batch of the second worker", f"{found['first_call_seconds']:.1f} s, {ratio:.1f} times as fast"),
        *(("first batch of the one that replaces the dead", f"{each['first_call_seconds']:.1f} s") for each in replacing),
        ("whole run, with starting, compiling and the death", f"{source['fleet_s']:.0f} s"),
        ("one process, compiled already", f"{source['alone_s']:.0f} s"),
        (
            f"broken off at {resumed['finished']} rows, and called again",
            f"{resumed['rows']} rows, {resumed['redone']} drawn twice",
        ),
    ]
    title = f"digits, {settings['num_steps']} steps, `speedup={settings['speedup']:g}`, batches of {source['batch']}"
    return f"{markdown_table((title, ''), rows)}\n\nWorkers of one thread. {recorded_on(source)}"


def parallel(source: dict[str, Any]) -> str:
    """What two ranks that share a model communicate, keep and return."""

    def text(entries: list[dict[str, Any]]) -> str:
        return ", ".join(f"{entry['count']} {entry['op']}, {format_bytes(entry['num_bytes'])}" for entry in entries) or "nothing"

    rows = [
        (
            row["way"],
            row["granularity"],
            *(text(row["collectives"][kind]) for kind in ("full", "forecast")),
            f"{format_bytes(row['buffer_bytes'])} ({format_bytes(row['buffer_bytes_alone'])})",
            f"{row['error']:.0e}{'' if row['ranks_equal'] else ', ranks DIFFER'}",
        )
        for row in source["rows"]
    ]
    columns = ("", "features", "a full step receives", "a forecast step receives", "buffers of a rank (of one process)", "error")
    equal = "Both ranks return the same bits. " if all(row["ranks_equal"] for row in source["rows"]) else ""
    agreed = f"{equal}To agree on a step takes them {1e3 * source['agreement_s']:.2f} ms."
    return f"{markdown_table(columns, rows)}\n\n{agreed} {recorded_on(source)}"


# Of an H100 SXM, from its data sheet: operations per second in bfloat16, bytes per second of memory, of NVLink and of a network.
_PEAK, _MEMORY, _LINK, _NETWORK = 989e12, 3.35e12, 450e9, 50e9


def _bound(row: dict[str, Any], kind: str) -> float:
    """Seconds of a step, at the peaks of the device."""
    world_size = row["world_size"]
    link = _LINK if world_size <= 8 else _NETWORK
    compute = max(row["flops"][kind] / _PEAK, row["floor_bytes"][kind] / _MEMORY)
    return float(compute + row["received"][kind] * (world_size - 1) / world_size / link)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds >= 0.01 else f"{1e3 * seconds:.2g} ms"


def counted(source: dict[str, Any]) -> str:
    """One rank of a model at full size, on paper."""
    rows = [
        (
            row["model"],
            f"{row['way']}, {row['world_size']} ranks",
            row["granularity"],
            " / ".join(format_flops(row["flops"][kind]) for kind in ("full", "forecast")),
            " / ".join(format_bytes(row["received"][kind]) for kind in ("full", "forecast")),
            format_bytes(row["buffer_bytes"]),
            " / ".join(_milliseconds(_bound(row, kind)) for kind in ("full", "forecast")),
        )
        for row in source["rows"]
    ]
    columns = ("", "shared by", "features", "operations of a rank, full / forecast", "received", "buffers, order 1", "bound")
    return markdown_table(columns, rows)
