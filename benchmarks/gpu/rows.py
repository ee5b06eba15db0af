"""The rows of one case: eager and plain ``torch.compile`` once, then ours at each setting, with CUDA graphs and without."""

import gc
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.gpu.cases import Case, Setting, Subject
from benchmarks.gpu.loop import Loop, host_seconds, run_loop
from taylorseer_fx import TaylorSeerBackend, taylorseer_backend

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What holds for all rows; ``deadline`` on the clock of ``time.monotonic``. ``bandwidth`` is a copy's, in bytes a second.
    ``options`` are Inductor's, for plain ``torch.compile`` and ours alike.
    """

    device: torch.device
    num_steps: int
    compiler: str
    bandwidth: float
    deadline: float
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def empty(self) -> None:
        torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        """Reserved, since captures keep memory that is allocated to nobody; 0 on a CPU, which does not tell."""
        return torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else 0


def measure_case(bench: Bench, case: Case, depth: float, left_out: list[str]) -> Iterator[Row]:
    """A row for each setting that time is left for, by what the longest before took; the others are added to ``left_out``."""
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    subject = Subject.of(case, bench.device, dtype, depth)
    eager, plain = _eager(bench, subject), _plain(bench, subject)
    longest = 0.0
    for setting in case.settings:
        if bench.seconds_left < longest:
            left_out.append(f"{case.name}, {describe(setting)}")
            continue
        started = time.monotonic()
        ours = {name: _ours(bench, subject, setting, graphs) for name, graphs in (("compiled", False), ("cuda_graphs", None))}
        longest = max(longest, time.monotonic() - started)
        yield _row(case, depth, setting, eager, plain, ours)


def choose_depth(bench: Bench, case: Case) -> float | None:
    """The largest share of the blocks whose loops fit into the time left; None where none does.

    A loop's time is that of two calls of the smallest depth, scaled.
    """
    if len(case.depths) == 1:
        return 1.0 if bench.seconds_left > 0 else None
    smallest = case.depths[-1]
    subject = Subject.of(case, bench.device, torch.bfloat16 if bench.device.type == "cuda" else torch.float32, smallest)
    run_loop(subject, subject.model, 1)
    step = run_loop(subject, subject.model, 1).total
    num_loops = 2 + len(case.settings)  # eager and plain, and what ours come to
    budget = bench.seconds_left / 2  # the other half is for compiling
    return next((d for d in case.depths if d / smallest * step * bench.num_steps * num_loops <= budget), None)


def describe(setting: Setting) -> str:
    return f"order {setting.order}, interval {setting.interval}, {setting.granularity}"


def _eager(bench: Bench, subject: Subject) -> Row:
    bench.empty()
    run_loop(subject, subject.model, 2)
    loop = run_loop(subject, subject.model, bench.num_steps)
    return {"seconds": loop.total, "step_ms": _median_ms(loop.steps), "peak_bytes": bench.peak_bytes()}


def _plain(bench: Bench, subject: Subject) -> Row:
    bench.empty()
    compiled = torch.compile(subject.model, backend=bench.compiler, options=dict(bench.options) or None)
    first = run_loop(subject, compiled, 2)
    loop = run_loop(subject, compiled, bench.num_steps)
    step = statistics.median(loop.steps)
    compile_seconds = max(first.total - 2 * step, 0.0)
    return {"seconds": loop.total, "step_ms": step * 1e3, "compile_seconds": compile_seconds, "peak_bytes": bench.peak_bytes()}


def _ours(bench: Bench, subject: Subject, setting: Setting, cuda_graphs: bool | None) -> Row:
    bench.empty()
    options = {"cuda_graphs": cuda_graphs, "compiler": bench.compiler, "compiler_options": bench.options}
    backend = taylorseer_backend(**asdict(setting), **options)
    compiled = torch.compile(subject.model, backend=backend)

    def enter(step: int) -> Any:
        return backend.stream("run", step=step)

    first = run_loop(subject, compiled, bench.num_steps, enter)  # compiles, warms up, captures
    loop = run_loop(subject, compiled, bench.num_steps, enter)
    host = host_seconds(subject, compiled, bench.num_steps, enter)
    return _figures(bench, backend, first, loop, host)


def _figures(bench: Bench, backend: TaylorSeerBackend, first: Loop, loop: Loop, host: tuple[float, ...]) -> Row:
    is_full = [backend.config.schedule.is_full(step) for step in range(bench.num_steps)]
    forecast = [seconds for seconds, full in zip(loop.steps, is_full, strict=True) if not full]
    num_bytes, stats = backend.explain().traffic["forecast"].floor, backend.stats()
    return {
        "seconds": loop.total,
        "full_ms": _median_ms([seconds for seconds, full in zip(loop.steps, is_full, strict=True) if full]),
        "forecast_ms": _median_ms(forecast),
        "byte_ms": num_bytes / bench.bandwidth * 1e3,
        "forecast_gigabytes_a_second": num_bytes / statistics.median(forecast) / 1e9,
        "bandwidth_share": num_bytes / statistics.median(forecast) / bench.bandwidth,
        "host_us_full": statistics.median([s for s, full in zip(host, is_full, strict=True) if full]) * 1e6,
        "host_us_forecast": statistics.median([s for s, full in zip(host, is_full, strict=True) if not full]) * 1e6,
        "compile_seconds": max(first.total - loop.total, 0.0),
        "captures": stats.captures,
        "peak_bytes": bench.peak_bytes(),
        "buffer_bytes": stats.buffer_bytes,
        "ceiling": bench.num_steps / sum(is_full),
    }


def _row(case: Case, depth: float, setting: Setting, eager: Row, plain: Row, ours: dict[str, Row]) -> Row:
    for figures in ours.values():
        figures["over_eager"] = eager["seconds"] / figures["seconds"]
        figures["over_plain"] = plain["seconds"] / figures["seconds"]
        share = 1 / figures["ceiling"]  # of the steps that are full
        byte_ceiling = 1 / (share + (1 - share) * figures["byte_ms"] / plain["step_ms"])
        figures["realised_over_ceiling"] = figures["over_plain"] / figures["ceiling"]
        figures["realised_over_byte_ceiling"] = figures["over_plain"] / byte_ceiling
    settings = {**asdict(setting), "setting": describe(setting)}
    return {"case": case.name, "depth": depth, **settings, "eager": eager, "plain": plain, **ours}


def _median_ms(seconds: Any) -> float:
    return statistics.median(seconds) * 1e3
