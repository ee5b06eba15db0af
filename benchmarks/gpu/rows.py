"""The rows of one case: eager and plain ``torch.compile`` once, then ours at each setting; with CUDA graphs and without.

Settings that have their graphs in common are compiled once, and no setting is begun that is not expected to end in time.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.cases import Case, Setting, Subject
from benchmarks.gpu.loop import Loop, host_seconds, run_loop
from benchmarks.gpu.recording import Record, Row
from taylorseer_fx import TaylorSeerBackend, taylorseer_backend
from taylorseer_fx.runtime.schedule import Schedule

NUM_LOOPS = 3  # of a setting: the first, the one that is measured, and the one that tells what the host takes
COMPILE_RATIO = 1.5  # of two graphs to one, traced together
OURS = ("cuda_graphs", "compiled")
LEFT_OUT = {"cuda_graphs": "", "compiled": ", without CUDA graphs"}


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
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

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


def measure_case(bench: Bench, case: Case, depth: float, record: Record) -> None:
    """A row for each setting that time is left for, compiling included, with CUDA graphs first; what is not is left out."""
    bench.empty()  # what the case before held is freed before this one's model is made
    subject = Subject.of(case, bench.device, bench.dtype, depth)
    baselines = record.baselines.setdefault(case.name, {})
    for name, measure in BASELINES.items():
        baselines[name] = measure(bench, subject)
        record.save()
    compiling = COMPILE_RATIO * baselines["plain"]["compile_seconds"]  # until one of ours has told
    for settings in by_graph(case.settings):
        rows: dict[Setting, Row] = {}
        for name in OURS:
            pair = None
            for setting in settings if name == OURS[0] else tuple(rows):
                needed = NUM_LOOPS * seconds_a_run(bench, setting, baselines) + (compiling if pair is None else 0.0)
                if bench.seconds_left < needed:
                    record.leave_out(f"{case.name}, {describe(setting)}" + LEFT_OUT[name])
                    continue
                pair = pair or GraphPair.of(bench, subject, setting, name)
                figures = pair.measure(bench, setting)
                compiling = figures["compile_seconds"] or compiling  # 0 for what was compiled already
                row = rows.setdefault(setting, _row(case, depth, setting, baselines))
                row[name] = _compared(figures, baselines, name)
                record.add(row)


def by_graph(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Settings that have their graphs in common, together: when steps are full changes none."""
    groups: dict[tuple[int, str], list[Setting]] = {}
    for setting in settings:
        groups.setdefault((setting.order, setting.granularity), []).append(setting)
    return list(groups.values())


def seconds_a_run(bench: Bench, setting: Setting, baselines: Mapping[str, Row]) -> float:
    """What a run will take at most, if a forecast step takes a tenth of a full one."""
    schedule = Schedule(setting.interval, setting.warmup)
    full = sum(schedule.is_full(step) for step in range(bench.num_steps)) / bench.num_steps
    return (full + (1 - full) / 10) * float(baselines["plain"]["seconds"])


def choose_depth(bench: Bench, case: Case) -> float | None:
    """The largest share of the blocks whose loops fit into the time left; None where none does.

    A loop's time is that of two calls of the smallest depth, scaled.
    """
    if len(case.depths) == 1:
        return 1.0 if bench.seconds_left > 0 else None
    bench.empty()
    smallest = case.depths[-1]
    subject = Subject.of(case, bench.device, bench.dtype, smallest)
    run_loop(subject, subject.model, 1)
    step = run_loop(subject, subject.model, 1).total
    num_loops = 3 + len(case.settings)  # eager and plain twice, and what ours come to
    budget = bench.seconds_left / 2  # the other half is for compiling
    return next((d for d in case.depths if d / smallest * step * bench.num_steps * num_loops <= budget), None)


def describe(setting: Setting) -> str:
    return f"order {setting.order}, interval {setting.interval}, {setting.granularity}"


def _eager(bench: Bench, subject: Subject) -> Row:
    bench.empty()
    run_loop(subject, subject.model, 2)
    loop = run_loop(subject, subject.model, bench.num_steps)
    return {"seconds": loop.total, "step_ms": _median_ms(loop.steps), "peak_bytes": bench.peak_bytes()}


def _plain(bench: Bench, subject: Subject, extra: Mapping[str, Any]) -> Row:
    """Plain ``torch.compile``; ``extra`` options of Inductor make the mode reduce-overhead of the default one."""
    bench.empty()
    options = {**bench.options, **extra} if bench.compiler == "inductor" else {}
    compiled = torch.compile(subject.model, backend=bench.compiler, options=options or None)

    def enter(_: int) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # the output of the step before has been read
        return nullcontext()

    first = run_loop(subject, compiled, 3, enter)  # compiles, warms up, records
    loop = run_loop(subject, compiled, bench.num_steps, enter)
    step = statistics.median(loop.steps)
    compile_seconds = max(first.total - 3 * step, 0.0)
    return {"seconds": loop.total, "step_ms": step * 1e3, "compile_seconds": compile_seconds, "peak_bytes": bench.peak_bytes()}


@dataclass
class GraphPair:
    """A model compiled by us once, to be run at any setting that has its graphs."""

    subject: Subject
    backend: TaylorSeerBackend
    compiled: Callable[..., Any]

    @classmethod
    def of(cls, bench: Bench, subject: Subject, setting: Setting, name: str) -> "GraphPair":
        bench.empty()
        cuda_graphs = None if name == "cuda_graphs" else False
        options = {"cuda_graphs": cuda_graphs, "compiler": bench.compiler, "compiler_options": bench.options}
        backend = taylorseer_backend(**asdict(setting), **options)
        return cls(subject, backend, torch.compile(subject.model, backend=backend))

    def measure(self, bench: Bench, setting: Setting) -> Row:
        """The figures of a run at ``setting``, without what its first takes: that compiles, warms up and captures."""
        self.backend.reset()
        self.backend.config = replace(self.backend.config, interval=setting.interval, warmup=setting.warmup)
        self.backend._runtime.schedule = self.backend.config.schedule
        num_compiled, before = self.backend.stats().compiles, time.monotonic()
        run = partial(run_loop, self.subject, self.compiled, bench.num_steps, self._enter)
        run()
        first = time.monotonic() - before
        loop = run()
        host = host_seconds(self.subject, self.compiled, bench.num_steps, self._enter)
        has_compiled = self.backend.stats().compiles > num_compiled
        return _figures(bench, self.backend, max(first - loop.total, 0.0) if has_compiled else 0.0, loop, host)

    def _enter(self, step: int) -> Any:
        return self.backend.stream("run", step=step)


def _figures(bench: Bench, backend: TaylorSeerBackend, compile_seconds: float, loop: Loop, host: tuple[float, ...]) -> Row:
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
        "compile_seconds": compile_seconds,
        "captures": stats.captures,
        "peak_bytes": bench.peak_bytes(),
        "buffer_bytes": stats.buffer_bytes,
        "ceiling": bench.num_steps / sum(is_full),
    }


def _row(case: Case, depth: float, setting: Setting, baselines: Mapping[str, Row]) -> Row:
    return {"case": case.name, "depth": depth, **asdict(setting), "setting": describe(setting), **baselines}


def _compared(figures: Row, baselines: Mapping[str, Row], name: str) -> Row:
    """With plain ``torch.compile`` run in the same way: with CUDA graphs, or without."""
    plain = baselines["plain_cuda_graphs" if name == "cuda_graphs" else "plain"]
    over_plain, share = plain["seconds"] / figures["seconds"], 1 / figures["ceiling"]  # share: of the steps that are full
    byte_ceiling = 1 / (share + (1 - share) * figures["byte_ms"] / plain["step_ms"])
    return {
        **figures,
        "over_eager": baselines["eager"]["seconds"] / figures["seconds"],
        "over_plain": over_plain,
        "realised_over_ceiling": over_plain / figures["ceiling"],
        "realised_over_byte_ceiling": over_plain / byte_ceiling,
    }


def _median_ms(seconds: Any) -> float:
    return statistics.median(seconds) * 1e3


BASELINES: dict[str, Callable[[Bench, Subject], Row]] = {
    "eager": _eager,
    "plain": partial(_plain, extra={}),
    "plain_cuda_graphs": partial(_plain, extra={"triton.cudagraphs": True}),
}
