"""``backend.explain()``: what was found in a graph, what was made of it, and what was left alone and why."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from taylorseer_fx.config import BackendConfig
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.passes.flops import count_flops
from taylorseer_fx.passes.pipeline import PassResult, StageRecord, count_ops
from taylorseer_fx.passes.regions import Region, Rejected
from taylorseer_fx.passes.specialize import StepKind
from taylorseer_fx.text import format_bytes, format_flops, format_table

SHOWN_STEPS = 50


@dataclass(frozen=True)
class FeatureInfo:
    """A forecast tensor: its shape (symbolic sizes as text), its dtype, and the bytes of its buffers over all orders."""

    shape: tuple[int | str, ...]
    dtype: torch.dtype
    buffer_bytes: int


@dataclass(frozen=True)
class RegionInfo:
    """A region: where it comes from, what it computes, and the features it ends in."""

    path: str
    kind: str
    features: tuple[FeatureInfo, ...]
    num_ops: int


@dataclass(frozen=True)
class Report:
    """All of it as data; ``print`` shows it as tables."""

    regions: tuple[RegionInfo, ...]
    rejected: tuple[Rejected, ...]
    stages: tuple[StageRecord, ...]
    buffer_bytes: int
    order: int
    schedule: str
    num_ops: dict[str, int]
    flops: dict[str, int]
    time_inputs: tuple[str, ...]
    num_graphs: int
    _graphs: dict[str, fx.GraphModule] = field(repr=False)

    def graph(self, name: str) -> fx.GraphModule:
        """The graph "canonical", "guarded", "full" or "forecast"; ``graph("full").print_readable()`` prints it.

        Raises:
            ConfigError: another name.
        """
        if name not in self._graphs:
            raise ConfigError("name", " or ".join(map(repr, self._graphs)), name)
        return self._graphs[name]

    def __str__(self) -> str:
        return "\n\n".join(part for part in (self._passes(), self._regions(), self._rejected(), self._summary()) if part)

    def _passes(self) -> str:
        rows = [(stage.name, str(stage.num_ops), f"{stage.duration_ms:.1f}") for stage in self.stages]
        return format_table(("pass", "ops", "ms"), rows, right=(1, 2))

    def _regions(self) -> str:
        rows = []
        for region in self.regions:
            for i, feature in enumerate(region.features):
                name = (region.path, region.kind) if i == 0 else ("", "")
                rows.append((*name, _shape_text(feature), format_bytes(feature.buffer_bytes)))
        return format_table(("region", "kind", "feature", "buffers"), rows, right=(3,))

    def _rejected(self) -> str:
        return "\n".join(["executed in every step:", *(f"  {entry}" for entry in self.rejected)]) if self.rejected else ""

    def _summary(self) -> str:
        kinds = Counter(region.kind for region in self.regions)
        num_features = sum(len(region.features) for region in self.regions)
        share = self.flops["forecast"] / self.flops["full"] if self.flops["full"] else 0.0
        num_full = self.schedule.count("F")
        lines = [
            f"{len(self.regions)} regions ({', '.join(f'{count} {kind}' for kind, count in kinds.items())}), "
            f"{num_features} features, {len(self.rejected)} rejected",
            f"forecast step: {self.num_ops['full'] - self.num_ops['forecast']} of {self.num_ops['full']} ops removed, "
            f"{format_flops(self.flops['forecast'])} of {format_flops(self.flops['full'])} left ({share:.2%})",
            f"schedule:      {self.schedule}  ({num_full} of {len(self.schedule)} steps full, "
            f"ceiling {len(self.schedule) / num_full:.2f}x)",
            f"buffers:       {format_bytes(self.buffer_bytes)} a stream (order {self.order}: {self.order + 1} a feature)",
            f"time inputs:   {', '.join(self.time_inputs) or 'none found: say the step with backend.stream(name, step=i)'}",
        ]
        if self.num_graphs > 1:
            lines.append(f"graphs:        {self.num_graphs} compiled; explain(graph=i) shows another")
        return "\n".join(lines)


def describe_graph(result: PassResult, config: BackendConfig, num_graphs: int = 1) -> Report:
    """Read a report off what the passes made of one graph, which must have regions."""
    assert result.guarded is not None
    per_order = {feature.node: _num_bytes(feature.node, config) for feature in result.found.features}
    regions = tuple(_describe_region(region, per_order, config.order) for region in result.found.regions)
    graphs = {kind.value: result.variants[kind].gm for kind in StepKind}
    inputs = result.canonical.graph.find_nodes(op="placeholder")
    return Report(
        regions=regions,
        rejected=result.found.rejected,
        stages=result.stages,
        buffer_bytes=sum(feature.buffer_bytes for region in regions for feature in region.features),
        order=config.order,
        schedule=config.schedule.describe(SHOWN_STEPS),
        num_ops={name: count_ops(gm.graph) for name, gm in graphs.items()},
        flops={name: count_flops(gm.graph) for name, gm in graphs.items()},
        time_inputs=tuple(_input_text(inputs[i]) for i in result.time_inputs),
        num_graphs=num_graphs,
        _graphs={"canonical": result.canonical, "guarded": result.guarded.gm, **graphs},
    )


def _describe_region(region: Region, per_order: dict[fx.Node, int], order: int) -> RegionInfo:
    features = []
    for feature in region.features:
        value = feature.node.meta["val"]
        shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
        features.append(FeatureInfo(shape, value.dtype, per_order[feature.node] * (order + 1)))
    return RegionInfo(region.path, region.kind.value, tuple(features), len(region.nodes))


def _num_bytes(node: fx.Node, config: BackendConfig) -> int:
    """Bytes of one buffer; under dynamic shapes for the sizes the graph was traced with."""
    value = node.meta["val"]
    return _hint(value.numel()) * (config.buffer_dtype or value.dtype).itemsize


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


def _shape_text(feature: FeatureInfo) -> str:
    return f"{str(feature.dtype).removeprefix('torch.')}[{', '.join(map(str, feature.shape))}]"


def _input_text(node: fx.Node) -> str:
    value: Tensor = node.meta["val"]
    return f"{node.name} {str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
