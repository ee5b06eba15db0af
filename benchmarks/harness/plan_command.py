"""``taylorseer-fx plan MODEL``: what forecasting costs and saves on a full-size model, without weights and without a GPU."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from taylorseer_fx.bench.geometries import GEOMETRIES, Geometry
from taylorseer_fx.config import MAX_ORDER, BackendConfig
from taylorseer_fx.planning import Plan, plan_each
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.text import format_bytes, format_flops


@dataclass(frozen=True)
class PlanSettings:
    """Schedule of the plan: by interval and warm-up, or ``full_steps`` as a list; ``num_steps`` None is what the model's pipeline
    defaults to, ``orders`` those to count buffers of.
    """

    num_steps: int | None = None
    interval: int = 5
    warmup: int = 3
    full_steps: tuple[int, ...] | None = None
    orders: tuple[int, ...] = tuple(range(MAX_ORDER + 1))

    def configs(self) -> list[BackendConfig]:
        """One of each granularity and order."""
        return [
            BackendConfig(order, self.interval, self.warmup, self.full_steps, granularity)
            for granularity in ("module", "stack")
            for order in self.orders
        ]


def list_models(console: Console) -> None:
    """The names, and what one call of each is."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for heading in ("model", "one call of it", "steps", "sizes from"):
        table.add_column(heading)
    for geometry in GEOMETRIES.values():
        table.add_row(geometry.name, geometry.work, str(geometry.num_steps), geometry.source)
    console.print(table)


def plan_model(name: str, settings: PlanSettings) -> list[tuple[str, Plan]]:
    """A plan for each granularity and order, all of one trace."""
    geometry = GEOMETRIES[name]
    model, inputs = geometry.on_meta()
    configs = settings.configs()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Torchinductor does not support")  # nothing is compiled here
        plans = plan_each(model, inputs, configs, settings.num_steps or geometry.num_steps)
    return [(config.granularity, plan) for config, plan in zip(configs, plans, strict=True)]


def print_plan(name: str, settings: PlanSettings, console: Console) -> None:
    """Trace, count, print."""
    geometry = GEOMETRIES[name]
    with console.status(f"tracing {name} on the meta device, some seconds to a minute"):
        found = plan_model(name, settings)
    _, first = found[0]
    full = first.full_steps
    console.print(f"[bold]{name}[/bold], {geometry.work}, {_dtype(geometry)}", highlight=False)
    console.print(f"full steps     {len(full)} of {first.num_steps}: {', '.join(map(str, full))}", highlight=False)
    console.print(f"full step      {format_flops(first.flops_full)} a call\n", highlight=False)
    table = Table(header_style="bold", box=None, pad_edge=False)
    by_granularity = {name: [plan for found_name, plan in found if found_name == name] for name in ("module", "stack")}
    for heading in ("", *by_granularity):
        table.add_column(heading, justify="right" if heading else "left", min_width=16)
    for row in zip(_headings(settings.orders), *map(_cells, by_granularity.values()), strict=True):
        table.add_row(*row)
    console.print(table)
    for note in first.notes:
        console.print(f"note: {note}", highlight=False)
    console.print("buffers are those of one stream; guidance in two calls a step has two", style="dim", highlight=False)


def _headings(orders: Sequence[int]) -> list[str]:
    return ["features", "forecast step", "the run", "ceiling", *(f"buffers, order {order}" for order in orders)]


def _cells(plans: Sequence[Plan]) -> list[str]:
    first = plans[0]
    return [
        str(len(first.features)),
        format_flops(first.flops_forecast),
        format_flops(first.flops_total),
        f"{first.speedup_ceiling:.2f}x",
        *(format_bytes(plan.buffer_bytes) for plan in plans),
    ]


def _dtype(geometry: Geometry) -> str:
    return str(geometry.dtype).removeprefix("torch.")


def published() -> list[tuple[str, str, str, str]]:
    """The paper's FLOPs columns beside what ``plan`` counts: model, setting, published, counted (TFLOPs of a run, ratio)."""
    rows = []
    for name, settings in _PUBLISHED.items():
        model, inputs = GEOMETRIES[name].on_meta()
        configs = [BackendConfig(order=order, full_steps=full_steps(rule)) for order, rule, _ in settings]
        plans = plan_each(model, inputs, configs, 50)
        torch._dynamo.reset()
        for (order, rule, claim), counted in zip(settings, plans, strict=True):
            total, ratio = counted.flops_total / 1e12, counted.speedup_ceiling
            setting = f"N={rule[0]}, order {order}, {len(counted.full_steps)} of 50 steps full"
            rows.append((name, setting, claim, f"{total:.2f} TFLOPs, {ratio:.2f}x"))
    return rows


def full_steps(rule: tuple[int, int]) -> tuple[int, ...]:
    """Of ``(interval, warm-up)`` over 50 steps."""
    interval, warmup = rule
    return tuple(Schedule(interval, warmup).full_steps_of(50))


# Model: (order, (interval, warm-up), what the paper's tables say). arXiv 2503.06923, tables 1 to 3.
_PUBLISHED: dict[str, tuple[tuple[int, tuple[int, int], str], ...]] = {
    "FLUX.1-dev": (
        (2, (4, 3), "1042.27 TFLOPs, 3.57x"),
        (2, (5, 3), "893.54 TFLOPs, 4.16x"),
        (2, (6, 3), "744.81 TFLOPs, 4.99x"),
    ),
    "HunyuanVideo": ((1, (5, 1), "5960.4 TFLOPs, 5.00x"),),
    "DiT-XL/2-256": ((3, (3, 2), "2.77x"), (4, (4, 2), "3.57x"), (3, (5, 2), "4.53x")),
}
