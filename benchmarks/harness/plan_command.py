"""``taylorseer-fx plan MODEL``: what forecasting costs and saves on a full-size model, without weights and without a GPU."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from taylorseer_fx.bench.geometries import GEOMETRIES, Geometry
from taylorseer_fx.bench.sharing import WAYS, one_of, share
from taylorseer_fx.config import GRANULARITIES, MAX_ORDER, BackendConfig
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.explain import collectives_text, replicated_text
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.planning import Plan, plan_each
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.text import format_bytes, format_flops

# Settings of the backend that the command takes as options. Orders are the table's rows, granularities its columns, and a
# memory budget would choose one of these.
PLANNED_SETTINGS = ("interval", "warmup", "full_steps", "speedup", "buffer_dtype")


@dataclass(frozen=True)
class PlanSettings:
    """The settings to plan.

    ``num_steps``: None for the default of the model's pipeline; ``given``: settings of ``PLANNED_SETTINGS``; ``orders``: those
    to count buffers for; ``world_size``: ranks that share the model, in the ``way`` of that name.
    """

    num_steps: int | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    orders: tuple[int, ...] = tuple(range(MAX_ORDER + 1))
    world_size: int = 1
    way: str = "ulysses"

    def __post_init__(self) -> None:
        """Raises:
        ConfigError: there are no ranks, or no such way to share a model.
        """
        if self.world_size < 1:
            raise ConfigError("world_size", "an int of at least 1", self.world_size)
        if self.way not in WAYS:
            raise ConfigError("share", " or ".join(map(repr, WAYS)), self.way)

    def configs(self) -> list[BackendConfig]:
        """One for each granularity and order.

        Raises:
            ConfigError: a setting is out of range.
        """
        given = dict(self.given)
        if "buffer_dtype" in given:
            given["buffer_dtype"] = getattr(torch, given["buffer_dtype"], given["buffer_dtype"])
        return [
            BackendConfig(order=order, granularity=granularity, **given) for granularity in GRANULARITIES for order in self.orders
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
    configs = settings.configs()
    with one_of(settings.world_size) if settings.world_size > 1 else nullcontext(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Torchinductor does not support")  # nothing is compiled here
        model, inputs = geometry.on_meta()
        if settings.world_size > 1:
            _share(name, model, settings)
        plans = plan_each(model, inputs, configs, settings.num_steps or geometry.num_steps)
    return [(config.granularity, plan) for config, plan in zip(configs, plans, strict=True)]


def _share(name: str, model: nn.Module, settings: PlanSettings) -> None:
    try:
        share(model, settings.way)
    except ValueError as error:  # diffusers has no plan for the model, or its heads cannot be divided
        allowed = f"a way to share {name} between {settings.world_size} ranks"
        raise ConfigError("share", allowed, settings.way, f"{error} simple_fsdp shares any model.") from error


def print_plan(name: str, settings: PlanSettings, console: Console) -> None:
    """Trace, count, print."""
    geometry = GEOMETRIES[name]
    with console.status(f"tracing {name} on the meta device, some seconds to a minute"):
        found = plan_model(name, settings)
    _, first = found[0]
    full = first.full_steps
    console.print(f"[bold]{name}[/bold], {geometry.work}, {_dtype(geometry)}{_ranks(settings)}", highlight=False)
    console.print(f"full steps     {len(full)} of {first.num_steps}: {', '.join(map(str, full))}", highlight=False)
    console.print(f"full step      {format_flops(first.flops_full)} a call\n", highlight=False)
    table = Table(header_style="bold", box=None, pad_edge=False)
    by_granularity = {name: [plan for found_name, plan in found if found_name == name] for name in GRANULARITIES}
    for heading in ("", *by_granularity):
        table.add_column(heading, justify="right" if heading else "left", min_width=16)
    for row in zip(_headings(settings.orders), *map(_cells, by_granularity.values()), strict=True):
        table.add_row(*row)
    console.print(table)
    for granularity, (plan, *_) in by_granularity.items() if settings.world_size > 1 else ():
        for kind in StepKind:
            received = collectives_text(entry for report in plan.reports for entry in report.collectives[kind.value])
            console.print(f"{granularity}: a {kind.value} step receives {received}", highlight=False)
        if replicated := sum(report.replicated_bytes for report in plan.reports):
            console.print(f"{granularity}: {replicated_text(replicated)}", highlight=False)
    for note in first.notes:
        console.print(f"note: {note}", highlight=False)
    console.print("buffers are those of one stream; guidance in two calls a step has two", style="dim", highlight=False)


def _ranks(settings: PlanSettings) -> str:
    return f"; all figures are those of one of {settings.world_size} ranks, {settings.way}" if settings.world_size > 1 else ""


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
    """The ceiling of ``(interval, warm-up)`` over 50 steps."""
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
