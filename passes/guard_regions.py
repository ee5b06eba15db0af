"""Put every region into a guarded branch: one standard FX graph that holds both kinds of step.

    before:  %F = ...region...(%live_ins)
             %out = add(mul(%gate, %F), %x)

    after:   %F, %b0', %b1' = cond(%is_full, region_full, region_forecast, (%live_ins, %b0, %b1, %coefficients))
             %out = add(mul(%gate, %F), %x)
             return %out, %b0', %b1'

    region_full       executes the region and returns the feature with the new value of its buffers
    region_forecast   returns the polynomial and passes the buffers through

Only the part of a feature that forecast steps read is stored (``find_stored``); its forecast is zero elsewhere. The graph is
functional and executable, given the extra inputs, which makes it the reference for the specialised graphs.
"""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor, fx

from taylorseer_fx.compat import FakeTensorMode
from taylorseer_fx.passes.dataflow import live_nodes
from taylorseer_fx.passes.emit import (
    Emit,
    attribute,
    cast,
    emit_as_it_is,
    emit_padded,
    emit_window,
    emitter,
    graph_fake_mode,
    graph_module,
    outputs,
    placeholder,
    standing_for,
)
from taylorseer_fx.passes.ops import aten
from taylorseer_fx.passes.regions import Feature, Region, RegionSet
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.passes.taylor import accumulation_dtype, emit_differences, emit_polynomial, emit_snapshots

cond = torch.ops.higher_order.cond


@dataclass(frozen=True)
class GuardedGraph:
    """A graph of guarded branches and how to call it.

    Inputs: the ``num_inputs`` of the original graph, then ``is_full`` (bool scalar), ``coefficients`` ``[num_buffers]``, where
    buffers are differences ``reciprocal_gaps`` ``[order]``, then the derivative buffers, order by order and within it feature by
    feature. Outputs: the ``num_outputs`` of the original graph, then the new value of every buffer.
    """

    gm: fx.GraphModule
    num_inputs: int
    num_outputs: int
    storage: Storage
    coefficient_dtype: torch.dtype

    @property
    def placeholders(self) -> list[fx.Node]:
        return self.gm.graph.find_nodes(op="placeholder")

    @property
    def is_full(self) -> fx.Node:
        return self.placeholders[self.num_inputs]

    @property
    def coefficients(self) -> list[fx.Node]:
        """``coefficients``, and ``reciprocal_gaps`` where the buffers are differences."""
        return self.placeholders[self.num_inputs + 1 : self.num_inputs + 1 + _num_coefficients(self.storage)]

    @property
    def buffers(self) -> list[fx.Node]:
        return self.placeholders[self.num_inputs + 1 + _num_coefficients(self.storage) :]


def _num_coefficients(storage: Storage) -> int:
    return 2 if storage.keeps_differences else 1


def guard_regions(gm: fx.GraphModule, found: RegionSet, storage: Storage) -> GuardedGraph:
    """A new graph in which each region of ``found`` is a guarded branch; ``gm`` is left as it is.

    Args:
        gm: the canonical graph that ``found`` was found in.
        found: its regions.
        storage: the buffers of a feature.
    """
    return _Builder(gm, found, storage).build()


class _Builder:
    """Copies a graph node by node, putting a guarded branch where the first live-out of a region is read."""

    def __init__(self, gm: fx.GraphModule, found: RegionSet, storage: Storage) -> None:
        self.gm, self.found, self.storage = gm, found, storage
        self.graph = fx.Graph()
        self.attributes: dict[str, Any] = {}
        self.mode = graph_fake_mode(gm.graph)
        self.env: dict[fx.Node, fx.Node] = {}
        self.region_of = {node: region for region in found.regions for node in region.nodes}
        self.new_buffers: dict[fx.Node, fx.Node] = {}
        inputs = gm.graph.find_nodes(op="placeholder")
        self.num_inputs = len(inputs)
        self.env.update({node: self.graph.node_copy(node) for node in inputs})
        self._add_inputs()

    def _add_inputs(self) -> None:
        stored = [feature for feature in self.found.features if feature.stored_window is not None]
        like = {feature: _stored_value(feature, self.mode) for feature in stored}
        wide = {accumulation_dtype(value.dtype) for value in like.values()}
        self.coefficient_dtype = max(wide, key=lambda dtype: dtype.itemsize)
        device, count = next(iter(like.values())).device, self.storage.num_buffers

        def coefficients(name: str, count: int) -> fx.Node:
            return placeholder(self.graph, name, torch.empty(count, dtype=self.coefficient_dtype, device=device))

        def buffers(i: int) -> list[fx.Node]:
            return [
                placeholder(self.graph, f"feature{f}_b{i}", torch.empty_like(like[feature], dtype=self._dtypes(feature)[i]))
                for f, feature in enumerate(stored)
            ]

        with self.mode:
            self.is_full = placeholder(self.graph, "is_full", torch.empty((), dtype=torch.bool))
            self.coefficients = [coefficients("coefficients", count)]
            if self.storage.keeps_differences:
                self.coefficients.append(coefficients("reciprocal_gaps", count - 1))
            by_order = [buffers(i) for i in range(count)]
        self.ordered = [buffer for row in by_order for buffer in row]
        self.buffers = dict(zip((feature.node for feature in stored), zip(*by_order, strict=True), strict=True))

    def _dtypes(self, feature: Feature) -> tuple[torch.dtype, ...]:
        return self.storage.dtypes(feature.node.meta["val"].dtype)

    def build(self) -> GuardedGraph:
        checks = self._checks_of_regions()
        for node in self.gm.graph.nodes:
            if node.op != "output" and node not in self.region_of and node not in checks:
                self._materialize(node)
        output = self.gm.graph.output_node()
        results = fx.map_arg(outputs(self.gm.graph), self._materialize)
        new = [self.new_buffers[buffer] for buffer in self.ordered]
        self.graph.output((*results, *new)).meta.update(output.meta)
        guarded = graph_module(self.attributes, self.graph, "GuardedGraph")
        return GuardedGraph(guarded, self.num_inputs, len(results), self.storage, self.coefficient_dtype)

    def _checks_of_regions(self) -> set[fx.Node]:
        """Assertions about what is inside a region (data-dependent sizes, say), with what only they need. Nothing outside a
        region may read more of it than its features, so they are left out.
        """
        live, features = live_nodes(self.gm.graph), {feature.node for feature in self.found.features}
        checks: set[fx.Node] = set()
        for node in self.gm.graph.nodes:
            if node not in live and node not in self.region_of:
                hidden = (source for source in node.all_input_nodes if source in checks or source in self.region_of)
                if any(source not in features for source in hidden):
                    checks.add(node)
        return checks

    def _materialize(self, node: fx.Node) -> fx.Node:
        """The copy of ``node``, after copying whatever it needs.

        Regions interleave with the nodes around them, so a live-in may stand behind its region's first node.
        """
        stack = [node]
        while stack:
            top = stack[-1]
            if top in self.env:
                stack.pop()
                continue
            region = self.region_of.get(top)
            needed: Iterable[fx.Node] = top.all_input_nodes if region is None else region.live_ins
            if missing := [source for source in needed if source not in self.env]:
                stack.extend(missing)
            elif region is not None:
                self._add_branch(region)
            else:
                self.env[top] = _copy(top, self.env, self.graph, self.gm, self.attributes)
        return self.env[node]

    def _add_branch(self, region: Region) -> None:
        index = self.found.regions.index(region)
        live_ins = [node for node in region.live_ins if node.op != "get_attr"]
        buffers = [buffer for feature in region.features for buffer in self.buffers.get(feature.node, ())]
        operands = [*(self.env[node] for node in live_ins), *buffers, *self.coefficients]
        branches = []
        for kind, fill in (("full", self._execute), ("forecast", self._forecast)):
            name = f"region{index}_{kind}"
            self.attributes[name] = self._branch(name, region, live_ins, operands, fill)
            branches.append(self.graph.get_attr(name))
        with standing_for(region.features[0].node, __name__):
            values = tuple(node.meta["val"] for node in [*(f.node for f in region.features), *buffers])
            call = emit_as_it_is(self.graph, cond, (self.is_full, *branches, tuple(operands)), values)
            results = [emit_as_it_is(self.graph, operator.getitem, (call, i), value) for i, value in enumerate(values)]
        self.env.update(zip((f.node for f in region.features), results, strict=False))
        self.new_buffers.update(zip(buffers, results[len(region.features) :], strict=True))

    def _branch(
        self, name: str, region: Region, live_ins: list[fx.Node], operands: list[fx.Node], fill: "_Fill"
    ) -> fx.GraphModule:
        """One side of a guarded branch; both sides take the same operands and return the same shapes."""
        graph, attributes = fx.Graph(), dict[str, Any]()
        inputs = [placeholder(graph, f"{node.name}_", node.meta["val"]) for node in operands]
        env = dict(zip(live_ins, inputs, strict=False))
        for node in region.live_ins:
            if node.op == "get_attr":
                env[node] = _copy(node, env, graph, self.gm, attributes)
        first_coefficient = len(operands) - len(self.coefficients)
        buffers = dict(zip(operands[len(live_ins) : first_coefficient], inputs[len(live_ins) : first_coefficient], strict=True))
        inside = _Arm(graph, attributes, env, buffers, tuple(inputs[first_coefficient:]))
        graph.output(tuple(fill(region, inside)))
        return graph_module(attributes, graph, name)

    def _execute(self, region: Region, inside: "_Arm") -> list[fx.Node]:
        for node in region.nodes:
            inside.env[node] = _copy(node, inside.env, inside.graph, self.gm, inside.attributes)
        emit = emitter(inside.graph, self.mode)
        results = [inside.env[feature.node] for feature in region.features]
        for feature in region.features:
            if feature.stored_window is not None:
                with standing_for(feature.node, __name__):
                    results += self._new_contents(emit, feature, inside)
        return results

    def _new_contents(self, emit: Emit, feature: Feature, inside: "_Arm") -> list[fx.Node]:
        """The contents of the buffers of ``feature`` after a full step."""
        value = emit_window(emit, inside.env[feature.node], feature.window)
        if feature.base is not None:
            wide = accumulation_dtype(value.meta["val"].dtype)
            value = emit(aten.sub.Tensor, cast(emit, value, wide), cast(emit, inside.env[feature.base], wide))
        stored = [inside.buffers[buffer] for buffer in self.buffers[feature.node]]
        if self.storage.keeps_differences:
            return emit_differences(emit, value, stored, inside.coefficients[1])
        return emit_snapshots(emit, value, stored)

    def _forecast(self, region: Region, inside: "_Arm") -> list[fx.Node]:
        emit = emitter(inside.graph, self.mode)
        forecasts = []
        for feature in region.features:
            with standing_for(feature.node, __name__):
                is_read = feature.stored_window is not None
                forecasts.append(
                    self._forecast_feature(emit, feature, inside) if is_read else _zeros(emit, region, feature, inside)
                )
        return [*forecasts, *inside.buffers.values()]

    def _forecast_feature(self, emit: Emit, feature: Feature, inside: "_Arm") -> fx.Node:
        whole_value = feature.node.meta["val"]
        stored = [inside.buffers[buffer] for buffer in self.buffers[feature.node]]
        wide = accumulation_dtype(whole_value.dtype)
        value = emit_polynomial(emit, stored, inside.coefficients[0], wide)
        if feature.base is not None:
            # In this order: a sum lies in memory as its first operand does, and the buffers lie as the feature did.
            value = emit(aten.add.Tensor, value, cast(emit, inside.env[feature.base], wide))
        return emit_padded(emit, cast(emit, value, whole_value.dtype), feature.window, whole_value.shape)


@dataclass(frozen=True)
class _Arm:
    """The graph of one side while it is filled; ``buffers`` maps the outer placeholders to the inner ones."""

    graph: fx.Graph
    attributes: dict[str, Any]
    env: dict[fx.Node, fx.Node]
    buffers: dict[fx.Node, fx.Node]
    coefficients: tuple[fx.Node, ...]


def _zeros(emit: Emit, region: Region, feature: Feature, inside: _Arm) -> fx.Node:
    """The zeros that stand for a feature that nobody reads; symbolic sizes are taken from a tensor of its shape."""
    value, like = feature.node.meta["val"], region.live_in_like(feature)
    if any(isinstance(size, SymInt) for size in value.shape) and like is not None:
        return emit(aten.full_like.default, inside.env[like], 0.0, dtype=value.dtype)
    return emit(aten.full.default, tuple(value.shape), 0.0, dtype=value.dtype, device=value.device)


def _stored_value(feature: Feature, mode: FakeTensorMode) -> Tensor:
    """A fake tensor like the part of ``feature`` that is stored."""
    value: Tensor = feature.node.meta["val"]
    with mode:
        for dim, part in enumerate(feature.window):
            if part is not None:
                value = value.narrow(dim, part[0], (value.shape[dim] if part[1] is None else part[1]) - part[0])
        return value


_Fill = Callable[[Region, _Arm], list[fx.Node]]


def _copy(
    node: fx.Node, env: dict[fx.Node, fx.Node], graph: fx.Graph, owner: fx.GraphModule, attributes: dict[str, Any]
) -> fx.Node:
    if node.op == "get_attr":
        attributes[str(node.target)] = attribute(owner, node)
    return graph.node_copy(node, env.__getitem__)
