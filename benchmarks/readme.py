"""Write the recorded figures into the README and the docs: every table between ``<!-- name -->`` and ``<!-- /name -->``."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import choices, many_devices
from taylorseer_fx.bench import claims_report
from taylorseer_fx.bench.results import Report, Row, WorkloadResult
from taylorseer_fx.bench.tables import machine, markdown_table, recorded_on
from taylorseer_fx.bench.verdict import standing
from taylorseer_fx.demo import results as demo
from taylorseer_fx.text import format_bytes

PAGES = {
    "README.md": ("choice", "compared"),
    "docs/choosing.md": ("choice", "orders", "granularity"),
    "docs/measured.md": ("demo", "benchmarks", "gpu", "published"),
    "docs/compared.md": ("comparison", "claims"),
    "docs/fleets.md": ("fleet",),
    "docs/parallel.md": ("parallel", "parallel_counted"),
}


def update_pages(root: Path) -> None:
    """Rewrite the tables of the README and the docs in ``root`` from ``root/benchmarks/results``."""
    for name in PAGES:
        path = root / name
        path.write_text(with_tables(path.read_text(), root / "benchmarks" / "results", PAGES[name]))


def with_tables(text: str, results: Path, names: Iterable[str]) -> str:
    """``text`` with the tables of ``names`` made anew."""
    for name in names:
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        block = f"{begin}\n{_rendered(name, results)}\n{end}"
        text, count = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _, block=block: block, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the page must hold the marks {begin} and {end} once, found {count}")
    return text


def _rendered(name: str, results: Path) -> str:
    render, *sources = _TABLES[name]
    paths = [results / f"{source}.json" for source in sources]
    if not all(path.exists() for path in paths):
        return _WITHOUT.get(name, "Not recorded yet.")
    return render(*(json.loads(path.read_text()) for path in paths))


def _demo(source: dict[str, Any]) -> str:
    header, *lines = zip(demo.HEADINGS, *(demo.Row(**row).cells() for row in source["rows"]), strict=True)
    caption = (
        f"{source['num_images']} digits, {source['num_steps']} DDIM steps with guidance, order {source['order']}, schedule "
        f"`{source['schedule']}`. {recorded_on(source)}"
    )
    return f"{markdown_table(header, lines)}\n\n{caption}"


def _benchmarks(source: dict[str, Any]) -> str:
    by_name = {row["name"]: row for row in source["benchmarks"]}
    rows = []
    for order in (1, 2):
        row = by_name[f"test_steps[{order}]"]
        what = f"{row['workload']}, order {order}"
        rows += [
            (f"{what}: full step, over a step of plain `torch.compile`", f"{row['full_over_plain']:.3f}"),
            (f"{what}: forecast step, over a full step", f"{row['forecast_over_full']:.4f}"),
            (
                f"{what}: run of {len(row['schedule'])} steps, speed-up over plain `torch.compile` (ceiling)",
                f"{row['speedup_over_plain']:.2f}x ({row['ceiling']:.2f}x)",
            ),
            (f"{what}: derivative buffers", format_bytes(row["buffer_bytes"])),
        ]
    tiny = by_name["test_tiny_model_call"]
    rows += [
        *_floor(by_name["test_floor"]),
        *_update(by_name.get("test_update")),
        *_compiling([row for name, row in by_name.items() if name.startswith("test_compile_seconds")]),
        *_warm_start(by_name.get("test_warm_start_seconds")),
        (
            "Python overhead per call, with FLUX.1-dev's number of inputs and buffers",
            f"{by_name['test_dispatch_flux_sized']['microseconds_a_call']:.0f} us",
        ),
        (
            "a call of a model that does next to nothing, one thread, plain `torch.compile` / this backend with every step full",
            f"{tiny['plain_microseconds_a_call']:.0f} us / {tiny['ours_microseconds_a_call']:.0f} us",
        ),
    ]
    dates = sorted({row.get("date", source["date"]) for row in by_name.values()})
    caption = recorded_on(source | {"date": " and ".join(dates)})
    return f"{markdown_table(('measured', ''), [*rows, *_region_finding(by_name)])}\n\n{caption}"


def _floor(floor: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name in ("module", "stack"):
        row, what = floor[name], f"{floor['workload']}, order {floor['order']}, {name}"
        rows += [
            (f"{what}: full step, over a step of plain `torch.compile`", f"{row['full_over_plain']:.3f}"),
            (
                f"{what}: forecast step / plain step (and / time to move its bytes at copy speed, at weight-sum speed)",
                f"{row['forecast_over_plain']:.4f} ({row['forecast_over_bytes']:.2f}x, {row['forecast_over_reading']:.2f}x)",
            ),
            (
                f"{what}: run of {len(floor['schedule'])} steps, speed-up over plain `torch.compile` (byte ceiling, ceiling)",
                f"{row['speedup_over_plain']:.2f}x ({row['byte_ceiling']:.2f}x, {floor['ceiling']:.2f}x)",
            ),
            (f"{what}: derivative buffers", format_bytes(row["buffer_bytes"])),
        ]
    return rows


def _update(update: dict[str, Any] | None) -> list[tuple[str, str]]:
    if update is None:
        return []
    forms = f"{update['snapshots_ms']:.1f} ms / {update['differences_ms']:.1f} ms"
    return [("updating the buffers of DiT-XL/2, order 2: as snapshots / as differences", forms)]


def _compiling(measured: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    what = "compile seconds, both graphs, against plain `torch.compile`, caches cold (share of the passes)"
    return [
        (
            f"{row['workload']}: {what}",
            f"{_ratio(row['ours_seconds'], row['plain_seconds'])} ({row['passes_over_ours']:.1%})",
        )
        for row in measured
    ]


def _warm_start(warm: dict[str, Any] | None) -> list[tuple[str, str]]:
    if warm is None:
        return []
    what = f"{warm['workload']}, one thread: seconds until the first result, against plain `torch.compile`"
    return [
        (f"{what}, caches cold", _ratio(warm["ours_cold_seconds"], warm["plain_cold_seconds"])),
        (f"{what}, a second process", _ratio(warm["ours_warm_seconds"], warm["plain_warm_seconds"])),
    ]


def _ratio(ours: float, plain: float) -> str:
    return f"{ours:.1f} / {plain:.1f} = {ours / plain:.2f}"


def _region_finding(by_name: dict[str, Any]) -> list[tuple[str, str]]:
    full_size = [row for name, row in by_name.items() if name.startswith("test_full_size")]
    by_depth = [row for name, row in by_name.items() if name.startswith("test_depth")]
    models = ", ".join(f"{row['model']} ({row['num_ops']} ops)" for row in full_size)
    depths = ", ".join(row["model"].removeprefix("DiT-XL, ") for row in by_depth)
    return [
        (f"finding the regions of {models}", " / ".join(f"{row['find_regions_ms']:.0f} ms" for row in full_size)),
        (f"finding the regions of DiT-XL with {depths}", " / ".join(f"{row['find_regions_ms']:.0f} ms" for row in by_depth)),
    ]


def _gpu(source: dict[str, Any]) -> str:
    header = (
        *("model, setting", "full, ms", "forecast, ms", f"{source['num_steps']} steps, s", "over eager", "over torch.compile"),
        *(
            "ceiling",
            "realised",
            "of what its bytes allow",
            "of a copy's bandwidth",
            "host, us",
            "without CUDA graphs, s",
            "peak",
            "buffers",
            "compile, s",
        ),
    )
    copied = f"a copy moves {source['copy_gigabytes_a_second']:.0f} GB/s"
    caption = f"{source['device']}, torch {source['torch']}, {source['date']}; {copied}."
    left_out = f" Left out for time: {'; '.join(source['left_out'])}." if source["left_out"] else ""
    return f"{markdown_table(header, [_gpu_row(row) for row in source['rows']])}\n\n{caption}{left_out}"


def _gpu_row(row: dict[str, Any]) -> tuple[str, ...]:
    ours, depth = row["cuda_graphs"], f", {row['depth']:.0%} of the blocks" if row["depth"] < 1 else ""
    return (
        f"{row['case']}{depth}, {row['setting']}",
        f"{ours['full_ms']:.2f}",
        f"{ours['forecast_ms']:.3f}",
        f"{ours['seconds']:.2f}",
        f"{ours['over_eager']:.2f}x",
        f"{ours['over_plain']:.2f}x",
        f"{ours['ceiling']:.2f}x",
        f"{ours['realised_over_ceiling']:.1%}",
        f"{ours['realised_over_byte_ceiling']:.1%}",
        f"{ours['bandwidth_share']:.0%}",
        f"{ours['host_us_forecast']:.0f}",
        f"{row['compiled']['seconds']:.2f}" if "compiled" in row else "-",
        format_bytes(ours["peak_bytes"]),
        format_bytes(ours["buffer_bytes"]),
        f"{ours['compile_seconds']:.0f}",
    )


_WITHOUT = {"gpu": "Not measured on a GPU yet. Run `python -m benchmarks.gpu` to measure, with a budget of ten minutes."}

_COLUMNS = (
    "",
    "full steps",
    "speed-up over torch.compile",
    "of its ceiling",
    "PSNR, dB",
    "kept between steps",
    "peak memory",
    "graphs, breaks, recompiles",
)


_STANDINGS = (
    "random weights: speed-up over torch.compile (relative distance from its own full run)",
    "full steps",
    "ours, the fastest",
    "the next at equal full steps",
    "fewer steps",
)


def _comparison(source: dict[str, Any]) -> str:
    report = Report.from_json(json.dumps(source))
    trained = [result for result in report.workloads if result.trained]
    parts = [_trained(result) for result in trained]
    others = [result for result in report.workloads if not result.trained]
    if others:
        parts += [markdown_table(_STANDINGS, list(map(_geometry, others))), *_not_the_fastest(others), _smoothness(others)]
    return "\n\n".join([*parts, machine(report)])


def _trained(result: WorkloadResult) -> str:
    """Compiled rows, and the official recursion, which is eager; ours up to order 2."""
    shown = [row for row in result.rows if row.compiled or row.family.startswith("official")]
    shown = [
        row for row in shown if not row.method.startswith("ours") or any(f"order {order}" in row.method for order in range(3))
    ]
    rows = []
    for row in shown:
        idle = "" if row.counts else f" ({row.status})"
        rows.append(
            (
                row.method + idle,
                f"{len(row.full_steps)} of {row.num_steps}" if row.num_steps else "-",
                f"{row.speedup:.2f}x" if row.counts and row.speedup else "-",
                f"{row.realised:.0%}" if row.counts and row.realised else "-",
                f"{row.psnr_db:.1f}" if row.psnr_db is not None else "-",
                format_bytes(row.held_bytes) if row.held_bytes is not None else "-",
                format_bytes(row.peak_bytes) if row.peak_bytes is not None else "-",
                f"{row.graphs}, {row.graph_breaks}, {row.recompiles}" if row.graphs else "-",
            )
        )
    steps = ", ".join(map(str, result.schedule))
    intro = f"{result.workload}, {result.num_steps} steps, of which {steps} in full:"
    return f"{intro}\n\n{markdown_table(_COLUMNS, rows)}\n\n{result.verdict}"


def _geometry(result: WorkloadResult) -> tuple[str, ...]:
    found = standing(result.rows, result.schedule)
    name = result.workload + (f" ({result.reduced})" if result.reduced else "")
    full_steps = f"{len(result.schedule)} of {result.num_steps}"
    if found is None:
        return (name, full_steps, "-", "-", "-")
    return (name, full_steps, *map(_standing, (found.ours, next(iter(found.same), None), found.fewer)))


def _standing(row: Row | None) -> str:
    if row is None:
        return "-"
    off = "" if row.relative_l2 is None else f" ({row.relative_l2:.1%})"
    return f"{row.method.removeprefix('ours, ')}: {row.speedup:.2f}x{off}"


def _not_the_fastest(results: Sequence[WorkloadResult]) -> list[str]:
    """The whole verdict, where another is as fast."""
    found = [(result, standing(result.rows, result.schedule)) for result in results]
    return [f"{result.workload}: {result.verdict}" for result, place in found if place is None or place.faster or place.elsewhere]


def _smoothness(results: Sequence[WorkloadResult]) -> str:
    """Compare the fidelity of random weights with that of fewer steps."""
    nearer, not_nearer = [], []
    for result in results:
        found = standing(result.rows, result.schedule)
        if found is not None and found.fewer is not None:
            is_nearer = (found.ours.relative_l2 or 0) < (found.fewer.relative_l2 or 0)
            (nearer if is_nearer else not_nearer).append(result.workload)
    count = f"{len(nearer)} of {len(nearer) + len(not_nearer)}"
    return (
        f"Trajectories are smooth even with random weights: in {count} workloads this method ends closer to the full run than "
        f"fewer steps do{_except(not_nearer)}."
    )


def _except(names: Sequence[str]) -> str:
    return f" (exception: {', '.join(names)})" if names else ""


def _published(source: dict[str, Any]) -> str:
    columns = ("model", "setting", "published", "counted")
    return markdown_table(("", *columns[1:]), [[row[name] for name in columns] for row in source["rows"]])


def _claims(source: dict[str, Any]) -> str:
    return claims_report.markdown(source, ("psnr_db_of_first_500", "frechet"))


_TABLES: dict[str, tuple[Any, ...]] = {  # what renders it, and the records that it is given
    "choice": (choices.choice, "claims", "comparison", "benchmarks", "fidelity-digits", "fidelity-fashion"),
    "compared": (choices.compared, "comparison"),
    "orders": (choices.orders, "claims"),
    "granularity": (choices.granularity, "comparison", "benchmarks"),
    "demo": (_demo, "demo"),
    "benchmarks": (_benchmarks, "benchmarks"),
    "gpu": (_gpu, "gpu"),
    "comparison": (_comparison, "comparison"),
    "claims": (_claims, "claims"),
    "published": (_published, "published"),
    "fleet": (many_devices.fleet, "fleet"),
    "parallel": (many_devices.parallel, "parallel"),
    "parallel_counted": (many_devices.counted, "parallel_counted"),
}
