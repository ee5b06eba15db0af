"""Choose the methods for each workload, and run all of it from start to end."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from taylorseer_fx.bench import fidelity
from taylorseer_fx.bench.measure import Bench, MeasureSettings
from taylorseer_fx.bench.methods.cache_dit import CacheDit
from taylorseer_fx.bench.methods.diffusers_caches import FirstBlockCache, MagCache, TaylorSeerCache, diffusers_full_steps
from taylorseer_fx.bench.methods.official import OfficialHooks
from taylorseer_fx.bench.methods.ours import Ours
from taylorseer_fx.bench.methods.plain import FewerSteps, Plain
from taylorseer_fx.bench.methods.sea_cache import SeaCache
from taylorseer_fx.bench.results import Report, WorkloadResult
from taylorseer_fx.bench.running import Case, Method
from taylorseer_fx.bench.verdict import verdict
from taylorseer_fx.bench.workloads import PipelineWorkload, digits, dit_xl2_256, fashion, flux, sd3, tiny_pipelines, wan
from taylorseer_fx.shipped import NUM_CLASSES

DEFAULT = ("digits", "fashion", "dit-xl2", "tiny-fluxpipeline")
CHOICES = ("few", "main", "all")
PLAIN: tuple[Method, ...] = (Plain(compiled=False), Plain(compiled=True))


def every_method() -> tuple[Method, ...]:
    """All of them, ours at all orders."""
    return (
        *PLAIN,
        FewerSteps(compiled=False),
        FewerSteps(compiled=True),
        *(Ours(order, granularity) for granularity in ("module", "stack") for order in range(5)),
        *placed_methods(),
        *_peers(),
    )


def main_methods() -> tuple[Method, ...]:
    """Ours at order 1 and one row a peer and way of running it: for workloads whose weights are random."""
    return _main_methods(orders=(1,))


def low_order_methods() -> tuple[Method, ...]:
    """Those of ``main_methods``, with ours of orders 0 and 2 and by other places of the full steps: for trained models, on
    which they differ.
    """
    return (*_main_methods(orders=(0, 1, 2)), *placed_methods())


def placed_methods() -> tuple[Method, ...]:
    """Ours with the paper's own schedule of 10 full steps of 50, and with 10, 8 and 6 placed by ``speedup``."""
    settings: Sequence[dict[str, Any]] = ({"interval": 6}, *({"speedup": speedup} for speedup in (5.0, 6.25, 8.0)))
    return tuple(Ours(1, granularity, **setting) for granularity in ("module", "stack") for setting in settings)


def _main_methods(orders: Sequence[int]) -> tuple[Method, ...]:
    return (*PLAIN, FewerSteps(compiled=True), *(Ours(order, "module") for order in orders), Ours(1, "stack"), *_peers())


def call_path_methods() -> tuple[Method, ...]:
    """Compiled forms alone: for pipelines without work in them."""
    return tuple(method for method in joint_methods() if method.compiled or method == Plain(compiled=False))


def joint_methods() -> tuple[Method, ...]:
    """Those of ``main_methods``, for models whose last block returns no text: cache-dit must be set to leave text out."""
    return (*main_methods(), CacheDit(compiled=False, encoder=False), CacheDit(compiled=True, encoder=False))


def few_methods() -> tuple[Method, ...]:
    """The quickest look: baselines, ours, and the two forms of the same recursion."""
    return (
        *PLAIN,
        FewerSteps(compiled=True),
        Ours(1, "module"),
        Ours(1, "stack"),
        OfficialHooks(1),
        TaylorSeerCache("named", compiled=True),
    )


def few_placed_methods() -> tuple[Method, ...]:
    """Those of ``few_methods``, with ours by the paper's 10 of 50 and by 8 placed ones, and caches that need no module names."""
    placed = (Ours(1, "module", interval=6), Ours(1, "module", speedup=6.25))
    return (*few_methods(), *placed, SeaCache(compiled=True), CacheDit(compiled=True))


def _peers() -> Iterable[Method]:
    yield OfficialHooks(1)
    for variant in ("default", "named", "lite"):
        yield from (TaylorSeerCache(variant, compiled) for compiled in (False, True))
    for kind in (FirstBlockCache, MagCache, SeaCache, CacheDit):
        yield from (kind(compiled) for compiled in (False, True))
    for calibrator in ("FoCa", "DMD"):
        yield from (CacheDit(compiled, calibrator) for compiled in (False, True))


@dataclass(frozen=True)
class Entry:
    """A workload and what runs on it: all that says something, and the main ones where those are fewer."""

    build: Callable[[], PipelineWorkload]
    every: Callable[[], Sequence[Method]]
    main: Callable[[], Sequence[Method]] | None = None

    def methods(self, choice: str) -> Sequence[Method]:
        """The methods of "few", "main" or "all"."""
        if choice == "few":
            return few_methods()
        return self.main() if choice == "main" and self.main is not None else self.every()


def entries() -> dict[str, Entry]:
    """The entries by the name that the command line knows."""
    tiny = {workload.name.replace(" ", "-").lower(): workload for workload in tiny_pipelines()}
    return {
        "digits": Entry(digits, every_method, low_order_methods),
        "fashion": Entry(fashion, low_order_methods, few_placed_methods),
        "dit-xl2": Entry(partial(dit_xl2_256, num_layers=2, num_steps=20), main_methods, few_methods),
        "flux": Entry(flux, main_methods, few_methods),
        "sd3": Entry(sd3, joint_methods, few_methods),
        "wan": Entry(wan, main_methods, few_methods),
        **{name: Entry(partial(_same, workload), call_path_methods, few_methods) for name, workload in tiny.items()},
    }


def _same(workload: PipelineWorkload) -> PipelineWorkload:
    return workload


def run_workload(
    workload: PipelineWorkload,
    methods: Sequence[Method],
    settings: MeasureSettings,
    on_method: Callable[[str], None] = lambda _: None,
    compile_baseline: bool = True,
) -> WorkloadResult:
    """Measure ``methods``, among which there must be both plain ones: without the baselines no figure is worth anything."""
    missing = [method.name for method in PLAIN if method not in methods and compile_baseline]
    if missing:
        raise ValueError(f"methods must include the baselines, missing: {', '.join(missing)}")
    schedule = diffusers_full_steps(workload.num_steps)
    bench = Bench(Case(workload, workload.build(), schedule), settings, _judge(workload), compile_baseline)
    rows = []
    for method in methods:
        on_method(method.name)
        rows.append(bench.measure(method))
    reuse, line = fidelity.smoothness(bench.reference.trajectory)
    return WorkloadResult(
        workload=workload.name,
        reduced=workload.reduced,
        trained=workload.trained,
        num_steps=workload.num_steps,
        schedule=schedule,
        rounds=settings.rounds,
        plain_step_flops=bench.plain_step_flops,
        reuse_error=reuse,
        line_error=line,
        rows=tuple(rows),
        verdict=verdict(rows, schedule),
    )


def _judge(workload: PipelineWorkload) -> Callable[..., float] | None:
    """Class accuracy, where there are classes that a classifier knows."""
    if workload.shipped is None:
        return None
    import torch

    judge = workload.shipped.judge()
    return lambda samples: judge.accuracy(samples, torch.arange(len(samples)) % NUM_CLASSES)


def run_suite(
    names: Sequence[str], settings: MeasureSettings, on_method: Callable[[str, str], None], methods: str = "main"
) -> Report:
    """Measure the named workloads one after another."""
    known = entries()
    results = []
    for name in names:
        entry = known[name]
        results.append(run_workload(entry.build(), entry.methods(methods), settings, partial(on_method, name)))
    return Report(tuple(results))
