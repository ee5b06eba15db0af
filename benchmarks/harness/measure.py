"""Measure a method on a workload, beside plain ``torch.compile`` of the same, in rounds A B A B."""

import dataclasses
import gc
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._inductor.utils import fresh_cache

from taylorseer_fx.bench import fidelity
from taylorseer_fx.bench.counting import Counts, count_eager, count_ours
from taylorseer_fx.bench.fleet import BatchesOfMethod, draw_batches
from taylorseer_fx.bench.methods.official import OfficialHooks
from taylorseer_fx.bench.methods.plain import Plain
from taylorseer_fx.bench.observing import DynamoFacts, Observation, graph_call_median, live_tensor_bytes, observe, with_peak_bytes
from taylorseer_fx.bench.results import Row
from taylorseer_fx.bench.running import Case, Clocked, Method, NotInstalledError, Runner, clocked_run

AGREES_WITHIN = 0.02  # relative L2 of a compiled peer's result from its eager twin's: else it was counted as another run


@dataclass(frozen=True)
class MeasureSettings:
    """``rounds`` of one run each; ``warm_start``: also the seconds of a first run with warm caches; ``samples``:
    on the digits, so many pictures a method for Frechet distance and class accuracy (0: accuracy on those of one run), drawn by
    ``workers`` of Ray (0: in this process).
    """

    rounds: int = 3
    warm_start: bool = False
    samples: int = 0
    workers: int = 0


@dataclass
class Bench:
    """One workload: the run in full that all are compared with, the baseline that all are timed against, and the counts."""

    case: Case
    settings: MeasureSettings
    judge: Callable[[torch.Tensor], float] | None = None
    compile_baseline: bool = True
    _counts: dict[Method, tuple[Counts, torch.Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        full = Plain(compiled=False)
        gc.collect()
        live_before = live_tensor_bytes()
        runner = full.prepare(self.case)
        self.reference: Observation = observe(runner)
        self.plain_held = self.reference.live_bytes - live_before  # latents, a scheduler of its own
        if not bool(torch.isfinite(self.reference.result).all()):
            raise ValueError(f"{self.case.workload.name}: the run in full is not finite, nothing can be measured against it")
        self._counts[full] = (count_eager(runner), self.reference.result)
        self.plain_step_flops = self._counts[full][0].full_step_flops
        self.baseline = Plain(compiled=self.compile_baseline).prepare(self.case)

    def measure(self, method: Method) -> Row:
        """A row, whatever happens: what goes wrong is in ``status`` and ``reason``."""
        row = Row(method.name, method.family, method.compiled, "failed", note=method.note)
        try:
            with _unlimited_recompiles():
                return self._measured(method, row)
        except NotInstalledError as error:
            return dataclasses.replace(row, status="not installed", reason=str(error))
        except Exception as error:  # a peer may fail in any way: that is a finding, and the others go on
            return dataclasses.replace(row, reason=f"{type(error).__name__}: {_first_line(error)}")

    def _measured(self, method: Method, row: Row) -> Row:
        if method.compiled:  # else the baseline may stay compiled
            DynamoFacts.forget()
        gc.collect()  # what the method before left
        live_before = live_tensor_bytes()
        runner, first, warm_start, facts = self._started(method)
        seen, again, peak_bytes = _observed_twice(runner, live_before)
        if seen.result.shape != self.reference.result.shape or not bool(torch.isfinite(seen.result).all()):
            return dataclasses.replace(row, reason=f"the result is not finite, or of shape {tuple(seen.result.shape)}")
        counts, counted_result = self._counted(method, runner, seen)
        timed = self._timed(runner)
        row = dataclasses.replace(
            row,
            status="ok",
            num_steps=runner.num_steps,
            held_bytes=max(0, seen.live_bytes - live_before - self.plain_held),
            peak_bytes=peak_bytes,
            repeatable=torch.equal(again, seen.result),
            agrees_with_eager=fidelity.relative_l2(seen.result, counted_result),
            **self._count_figures(counts),
            **(dataclasses.asdict(facts) if method.compiled else {}),
            **timed.figures(counts.full_steps),
            **self._compile_figures(method, first, warm_start, timed),
            **self._graph_calls(method, seen, counts.full_steps, runner.num_steps),
            **(self._fidelity(seen, runner) | self._distribution(method, runner)),
        )
        return dataclasses.replace(row, **_remarks(method, row))

    def _count_figures(self, counts: Counts) -> dict[str, Any]:
        return {
            "full_steps": counts.full_steps,
            "flops": counts.total,
            "light_step_flops_share": counts.light_share,
            "ceiling": self.case.num_steps * self.plain_step_flops / counts.total,
        }

    def _started(self, method: Method) -> tuple[Runner, Clocked, Clocked | None, DynamoFacts]:
        """Made ready and run once, with cold caches; then, if wanted, once more from the beginning with warm ones."""
        with fresh_cache():
            runner = method.prepare(self.case)
            first, warm = clocked_run(runner), None
            facts = DynamoFacts.read()
            if self.settings.warm_start and method.compiled:
                DynamoFacts.forget()
                del runner
                runner = method.prepare(self.case)
                warm = clocked_run(runner)
        return runner, first, warm, facts

    def _counted(self, method: Method, runner: Runner, seen: Observation) -> tuple[Counts, torch.Tensor]:
        """The counts of a run, and the result of the run that was counted."""
        twin = method.counted_as
        if twin is None:
            return count_ours(runner), seen.result
        if twin not in self._counts:
            counted = runner if twin == method else twin.prepare(self.case)
            self._counts[twin] = (count_eager(counted, self.plain_step_flops), counted.run())
        return self._counts[twin]

    def _timed(self, runner: Runner) -> "Timed":
        """The baseline and the method in turns; both have run before."""
        clocked_run(self.baseline, num_steps=2)
        pairs = [(clocked_run(self.baseline), clocked_run(runner)) for _ in range(self.settings.rounds)]
        return Timed(tuple(pairs))

    def _compile_figures(self, method: Method, first: Clocked, warm: Clocked | None, timed: "Timed") -> dict[str, Any]:
        usual = timed.seconds
        return {
            "compile_seconds": max(0.0, first.seconds - usual) if method.compiled else None,
            "warm_start_seconds": max(0.0, warm.seconds - usual) if warm is not None else None,
        }

    def _graph_calls(self, method: Method, seen: Observation, full_steps: tuple[int, ...], num_steps: int) -> dict[str, Any]:
        if not method.compiled:
            return {}
        others = tuple(step for step in range(num_steps) if step not in full_steps)
        return {
            "graph_calls_full": graph_call_median(seen.graph_calls, full_steps),
            "graph_calls_forecast": graph_call_median(seen.graph_calls, others),
        }

    def _fidelity(self, seen: Observation, runner: Runner) -> dict[str, Any]:
        reference, trained = self.reference, self.case.workload.trained
        same_steps = runner.num_steps == self.case.num_steps
        error = fidelity.along_trajectory(seen.trajectory, reference.trajectory) if same_steps else []
        last = fidelity.relative_l2(seen.result, reference.result)
        psnr = fidelity.psnr(seen.result, reference.result) if trained else None
        return {
            "relative_l2": last,
            "trajectory_error": (*error, last) if same_steps else (),
            "psnr_db": psnr if psnr is None or math.isfinite(psnr) else None,
            "ssim": fidelity.ssim(seen.result, reference.result) if trained else None,
            "class_accuracy": self.judge(seen.result) if self.judge is not None else None,
        }

    def _distribution(self, method: Method, runner: Runner) -> dict[str, Any]:
        """The distance of as many pictures as the settings ask for; an eager twin draws those of its compiled form: left out."""
        wanted = self.settings.samples
        model = self.case.workload.shipped
        if self.judge is None or model is None or not wanted or not (method.compiled or isinstance(method, OfficialHooks)):
            return {}
        from taylorseer_fx.bench.frechet import distance_from_real

        samples = self._many(method, runner, wanted)
        distance = distance_from_real(model, samples)
        return {"frechet": distance, "frechet_samples": len(samples), "class_accuracy": self.judge(samples)}

    def _many(self, method: Method, runner: Runner, wanted: int) -> torch.Tensor:
        """At least so many pictures, in whole batches; the seed of each is its number."""
        count = math.ceil(wanted / len(self.reference.result))
        if self.settings.workers:
            return draw_batches(BatchesOfMethod(method, self.case), count, self.settings.workers)
        return torch.cat([runner.run(seed=number) for number in range(count)])


def _observed_twice(runner: Runner, live_before: int) -> tuple[Observation, torch.Tensor, int]:
    """A run that is observed, the result of another one, and the most that was alive in that."""
    gc.collect()  # else what a warm start's first pipeline kept would count for the second
    seen: list[Observation] = []
    held: list[int] = []

    def observe_once() -> None:
        seen.append(observe(runner))
        gc.collect()
        held.append(live_tensor_bytes() - live_before - seen[0].nbytes)

    again, allocated = with_peak_bytes(runner.run, observe_once)
    return seen[0], again, max(0, held[0] + allocated)


@dataclass(frozen=True)
class Timed:
    """Pairs of a run of the baseline and one of the method, right after each other."""

    pairs: tuple[tuple[Clocked, Clocked], ...]

    @property
    def seconds(self) -> float:
        """Median of the method."""
        return statistics.median(ours.seconds for _, ours in self.pairs)

    def figures(self, full_steps: tuple[int, ...]) -> dict[str, Any]:
        """The full steps as the row has them."""
        speedups = [plain.seconds / ours.seconds for plain, ours in self.pairs]
        full = set(full_steps)
        return {
            "seconds": self.seconds,
            "speedup": statistics.median(speedups),
            "speedup_low": min(speedups),
            "speedup_high": max(speedups),
            "full_step_ms": self._median_ms(lambda step: step in full),
            "forecast_step_ms": self._median_ms(lambda step: step not in full),
        }

    def _median_ms(self, wanted: Callable[[int], bool]) -> float | None:
        seconds = [s for _, ours in self.pairs for step, s in enumerate(ours.step_seconds) if wanted(step)]
        return 1e3 * statistics.median(seconds) if seconds else None


def _unlimited_recompiles() -> Any:
    """Past its limit Dynamo runs eagerly without a word: no method is to be measured so."""
    return torch._dynamo.config.patch(recompile_limit=4096, accumulated_recompile_limit=65536)


def _remarks(method: Method, row: Row) -> dict[str, Any]:
    """``status`` and ``reason`` of a row that is measured."""
    if method.compiled and (row.agrees_with_eager or 0) > AGREES_WITHIN:
        return {"status": "failed", "reason": f"the compiled result is {row.agrees_with_eager:.1%} off the eager one"}
    if method.caches and len(row.full_steps) == row.num_steps:
        return {"status": "cached nothing", "reason": "every step executed everything"}
    return {"reason": "" if row.repeatable else "a second run gave another result"}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"
