"""Runs that are looked at and not timed: result, trajectory, memory kept and at its peak, calls of compiled graphs."""

import gc
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._dynamo.utils import (
    clear_compilation_metrics,
    counters,
    get_compilation_metrics,
    set_compilation_metrics_limit,
)
from torch._subclasses.fake_tensor import FakeTensor
from torch.profiler import ProfilerActivity, profile, record_function

from taylorseer_fx.bench.running import Runner

Result = TypeVar("Result")
_CALL = "the call whose peak is looked for"


@dataclass(frozen=True)
class Observation:
    """``trajectory``: the latents that each step begins with. ``live_bytes``: the most that all tensors together took between two
    steps of the middle of the run. ``graph_calls``: of compiled graphs, a step.
    """

    result: Tensor
    trajectory: tuple[Tensor, ...]
    live_bytes: int
    graph_calls: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of what it holds itself."""
        return sum(tensor.nbytes for tensor in (*self.trajectory, self.result))


def observe(runner: Runner, seed: int = 0) -> Observation:
    """Run once."""
    trajectory: list[Tensor] = []
    live: list[int] = []
    graph_calls: list[int] = []
    calls_a_step = runner.case.workload.calls_a_step
    first_looked_at = runner.num_steps // 2
    num_calls = 0

    def before(latents: Tensor) -> None:
        if num_calls % calls_a_step == 0:
            trajectory.append(latents.detach().clone())
            if first_looked_at <= len(trajectory) - 1 < first_looked_at + 6:
                live.append(live_tensor_bytes())
            graph_calls.append(_graph_calls(runner))

    def after() -> None:
        nonlocal num_calls
        num_calls += 1

    with runner.watched(before, after):
        result = runner.run(seed)
    graph_calls.append(_graph_calls(runner))
    ours = sum(tensor.nbytes for tensor in trajectory)
    per_step = tuple(b - a for a, b in pairwise(graph_calls))
    return Observation(result, tuple(trajectory), max(0, max(live) - ours), per_step)


def _graph_calls(runner: Runner) -> int:
    if runner.backend is not None:
        stats = runner.backend.stats()
        return stats.full_calls + stats.forecast_calls + stats.unforecast_calls
    return runner.compiler.num_calls if runner.compiler is not None else 0


def live_tensor_bytes() -> int:
    """The bytes of all tensors alive, each storage once."""
    storages = {}
    for candidate in gc.get_objects():
        kind = type(candidate)  # asking the object itself makes some of torch's lazy ones speak
        if issubclass(kind, Tensor) and kind is not FakeTensor and candidate.device.type != "meta":
            try:
                storage = candidate.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
            except (RuntimeError, NotImplementedError):  # subclasses and functional wrappers have none of their own
                continue
    return sum(storages.values())


def with_peak_bytes(call: Callable[[], Result], before: Callable[[], object] = lambda: None) -> tuple[Result, int]:
    """Return the result of ``call``, and the most that was allocated on the CPU at once in it, over what was there before it: the
    profiler sees every allocation, of compiled code as well. It sees a tensor go only if it saw it come: what ``call`` lets go
    must have been made in it or in ``before``.
    """
    with _silent_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        before()
        with record_function(_CALL):
            result = call()
    seen: Any = profiler.profiler
    return result, _peak(seen.kineto_results.events())


def _peak(events: Sequence[Any]) -> int:
    """The peak in the profiler's events, since the call began."""
    begun = next(event.start_ns() for event in events if event.name() == _CALL)
    memory = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    peak: int = max(0, *accumulate(nbytes for start, nbytes in memory if start >= begun))
    return peak


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler's C++ code says on it, at every log level and in the midst of a progress bar, that it starts and stops."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def graph_call_median(calls: tuple[int, ...], steps: tuple[int, ...]) -> float | None:
    """Median over ``steps``; None where there are none."""
    return statistics.median(calls[i] for i in steps) if steps else None


@dataclass(frozen=True)
class DynamoFacts:
    """Count what Dynamo made of the runs since ``forget``: graphs, breaks between them, recompiles of a frame."""

    graphs: int
    graph_breaks: int
    recompiles: int

    @staticmethod
    def forget() -> None:
        """Compiled code and counters go."""
        torch._dynamo.reset()
        counters.clear()
        set_compilation_metrics_limit(100_000)
        clear_compilation_metrics()

    @classmethod
    def read(cls) -> "DynamoFacts":
        """Since ``forget``."""
        recompiled = [metric for metric in get_compilation_metrics() if metric.recompile_reason]
        return cls(counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()), len(recompiled))
