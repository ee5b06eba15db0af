"""Count what a run really executed: FLOPs of every step, and from them the full steps. Nothing is taken from a method's claim.

Eager runs are counted operator by operator (torch's FlopCounterMode: matrix products, convolutions, attention). Inside compiled
code nothing can be counted, so a compiled peer is counted as its eager twin, and its result compared with the twin's. Our backend
counts its own calls as they happen.
"""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from taylorseer_fx.bench.running import Runner, by_step
from taylorseer_fx.passes.ops import FUSED_ATTENTION

FULL_SHARE = 0.999  # of the FLOPs of an uncached step: from there on a step counts as executed in full


@dataclass(frozen=True)
class Counts:
    """FLOPs of each step of a run, and of a step that executes everything."""

    step_flops: tuple[int, ...]
    full_step_flops: int

    @property
    def total(self) -> int:
        return sum(self.step_flops)

    @property
    def full_steps(self) -> tuple[int, ...]:
        """Steps that executed everything."""
        return tuple(i for i, flops in enumerate(self.step_flops) if flops >= FULL_SHARE * self.full_step_flops)

    @property
    def light_share(self) -> float | None:
        """Mean FLOPs of the other steps over those of a full one; None where there are none."""
        full = set(self.full_steps)
        light = [flops for i, flops in enumerate(self.step_flops) if i not in full]
        return sum(light) / len(light) / self.full_step_flops if light else None


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    flops: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    return flops


_MORE_FORMULAS = {op: _attention_flops for op in FUSED_ATTENTION if op not in flop_registry}  # torch has none for CPUs


def count_eager(runner: Runner, full_step_flops: int | None = None) -> Counts:
    """One run under torch's counter; ``full_step_flops`` None: every step is known to execute everything."""
    calls: list[int] = []
    counter = FlopCounterMode(display=False, custom_mapping=_MORE_FORMULAS)
    before = [0]

    def remember(_latents: torch.Tensor) -> None:
        before[0] = counter.get_total_flops()

    with counter, runner.watched(remember, lambda: calls.append(counter.get_total_flops() - before[0])):
        runner.run()
    steps = by_step(calls, runner.case.workload.calls_a_step)
    return Counts(steps, full_step_flops or max(steps))


def count_ours(runner: Runner) -> Counts:
    """One run, each call's kind from the backend's counters, the FLOPs of a kind from the graphs that it compiled.

    A full step there has a little less than an eager one: equal expressions are computed once.
    """
    backend = runner.backend
    assert backend is not None
    graphs = backend.explain().graphs
    flops = {kind: sum(graph.flops[kind] * max(1, graph.num_layers) for graph in graphs) for kind in ("full", "forecast")}
    calls: list[int] = []
    forecast_calls = [0]

    def remember(_latents: torch.Tensor) -> None:
        forecast_calls[0] = backend.stats().forecast_calls

    def count() -> None:
        executed = backend.stats().forecast_calls == forecast_calls[0]
        calls.append(flops["full" if executed else "forecast"])

    with runner.watched(remember, count):
        runner.run()
    return Counts(by_step(calls, runner.case.workload.calls_a_step), flops["full"] * runner.case.workload.calls_a_step)
