"""Put every region into a guarded branch: one standard FX graph that holds both kinds of step.

    before:  %F = ...region...(%live_ins)
             %out = add(mul(%gate, %F), %x)

    after:   %F, %d0', %d1' = cond(%is_full, region_full, region_forecast, (%live_ins, %d0, %d1, %reciprocal_gaps, %weights))
             %out = add(mul(%gate, %F), %x)
             return %out, %d0', %d1'

    region_full       executes the region and returns the feature with its new differences
    region_forecast   returns the polynomial and passes the buffers through

The graph is functional and runs as it is, given the extra inputs; that makes it the reference for what specialising does to it.
"""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from taylorseer_fx.passes.dataflow import live_nodes
from taylorseer_fx.passes.emit import attribute, emitter, graph_fake_mode, graph_module, outputs, placeholder
from taylorseer_fx.passes.regions import Region, RegionSet
from taylorseer_fx.passes.taylor import accumulation_dtype, emit_differences, emit_polynomial

cond = torch.ops.higher_order.cond


@dataclass(frozen=True)
class GuardedGraph:
    """A graph of guarded branches and how to call it.

    Inputs: the ``num_inputs`` of the original graph, then ``is_full`` (bool scalar), ``reciprocal_gaps`` ``[order]``,
    ``weights`` ``[order + 1]``, then the derivative buffers, feature by feature and within it order by order. Outputs: the
    ``num_outputs`` of the original graph, then the new value of every buffer.
    """

    gm: fx.GraphModule
    num_inputs: int
    num_outputs: int
    order: int
    coefficient_dtype: torch.dtype

    @property
    def placeholders(self) -> list[fx.Node]:
        return self.gm.graph.find_nodes(op="placeholder")

    @property
    def is_full(self) -> fx.Node:
        return self.placeholders[self.num_inputs]

    @property
    def coefficients(self) -> list[fx.Node]:
        """``reciprocal_gaps`` and ``weights``."""
        return self.placeholders[self.num_inputs + 1 : self.num_inputs + 3]

    @property
    def buffers(self) -> list[fx.Node]:
        return self.placeholders[self.num_inputs + 3 :]


def guard_regions(gm: fx.GraphModule, found: RegionSet, order: int, buffer_dtype: torch.dtype | None) -> GuardedGraph:
    """A new graph in which each region of ``found`` is a guarded branch; ``gm`` is left as it is.

    Args:
        gm: the canonical graph that ``found`` was found in.
        found: its regions.
        order: highest derivative kept, 0 to 4: ``order + 1`` buffers a feature.
        buffer_dtype: dtype of the buffers; None keeps each feature's own.
    """
    return _Builder(gm, found, order, buffer_dtype).build()


class _Builder:
    """Copies a graph node by node, putting a guarded branch where the first live-out of a region is read."""

    def __init__(self, gm: fx.GraphModule, found: RegionSet, order: int, buffer_dtype: torch.dtype | None) -> None:
        self.gm, self.found = gm, found
        self.graph = fx.Graph()
        self.attributes: dict[str, Any] = {}
        self.mode = graph_fake_mode(gm.graph)
        self.env: dict[fx.Node, fx.Node] = {}
        self.region_of = {node: region for region in found.regions for node in region.nodes}
        self.new_buffers: dict[fx.Node, fx.Node] = {}
        inputs = gm.graph.find_nodes(op="placeholder")
        self.num_inputs = len(inputs)
        self.env.update({node: self.graph.node_copy(node) for node in inputs})
        self._add_inputs(order, buffer_dtype)

    def _add_inputs(self, order: int, buffer_dtype: torch.dtype | None) -> None:
        features = [feature.node for feature in self.found.features]
        like = [node.meta["val"] for node in features]
        wide = {accumulation_dtype(value.dtype) for value in like}
        self.order, self.coefficient_dtype = order, max(wide, key=lambda dtype: dtype.itemsize)

        def coefficients(count: int) -> Tensor:
            return torch.empty(count, dtype=self.coefficient_dtype, device=like[0].device)

        with self.mode:
            self.is_full = placeholder(self.graph, "is_full", torch.empty((), dtype=torch.bool))
            self.reciprocal_gaps = placeholder(self.graph, "reciprocal_gaps", coefficients(order))
            self.weights = placeholder(self.graph, "weights", coefficients(order + 1))
            self.buffers = {
                node: [
                    placeholder(self.graph, f"feature{f}_d{i}", torch.empty_like(like[f], dtype=buffer_dtype))
                    for i in range(order + 1)
                ]
                for f, node in enumerate(features)
            }

    def build(self) -> GuardedGraph:
        checks = self._checks_of_regions()
        for node in self.gm.graph.nodes:
            if node.op != "output" and node not in self.region_of and node not in checks:
                self._materialize(node)
        output = self.gm.graph.output_node()
        results = fx.map_arg(outputs(self.gm.graph), self._materialize)
        new = [self.new_buffers[buffer] for buffers in self.buffers.values() for buffer in buffers]
        self.graph.output((*results, *new)).meta.update(output.meta)
        guarded = graph_module(self.attributes, self.graph, "GuardedGraph")
        return GuardedGraph(guarded, self.num_inputs, len(results), self.order, self.coefficient_dtype)

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
        buffers = [buffer for feature in region.features for buffer in self.buffers[feature.node]]
        operands = [*(self.env[node] for node in live_ins), *buffers, self.reciprocal_gaps, self.weights]
        branches = []
        for kind, fill in (("full", self._execute), ("forecast", self._forecast)):
            name = f"region{index}_{kind}"
            self.attributes[name] = self._branch(name, region, live_ins, operands, fill)
            branches.append(self.graph.get_attr(name))
        call = self.graph.call_function(cond, (self.is_full, *branches, tuple(operands)))
        call.meta["val"] = tuple(node.meta["val"] for node in [*(f.node for f in region.features), *buffers])
        results = [self.graph.call_function(operator.getitem, (call, i)) for i in range(len(call.meta["val"]))]
        for result, value in zip(results, call.meta["val"], strict=True):
            result.meta["val"] = value
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
        buffers = dict(zip(operands[len(live_ins) : -2], inputs[len(live_ins) : -2], strict=True))
        inside = _Branch(graph, attributes, env, buffers, reciprocal_gaps=inputs[-2], weights=inputs[-1])
        graph.output(tuple(fill(region, inside)))
        return graph_module(attributes, graph, name)

    def _execute(self, region: Region, inside: "_Branch") -> list[fx.Node]:
        for node in region.nodes:
            inside.env[node] = _copy(node, inside.env, inside.graph, self.gm, inside.attributes)
        emit = emitter(inside.graph, self.mode)
        features = [inside.env[feature.node] for feature in region.features]
        results = list(features)
        for feature, value in zip(region.features, features, strict=True):
            stored = [inside.buffers[buffer] for buffer in self.buffers[feature.node]]
            results += emit_differences(emit, value, stored, inside.reciprocal_gaps)
        return results

    def _forecast(self, region: Region, inside: "_Branch") -> list[fx.Node]:
        emit = emitter(inside.graph, self.mode)
        forecasts = []
        for feature in region.features:
            stored = [inside.buffers[buffer] for buffer in self.buffers[feature.node]]
            forecasts.append(emit_polynomial(emit, stored, inside.weights, feature.node.meta["val"].dtype))
        return [*forecasts, *inside.buffers.values()]


@dataclass(frozen=True)
class _Branch:
    """The graph of one side while it is filled; ``buffers`` maps the outer placeholders to the inner ones."""

    graph: fx.Graph
    attributes: dict[str, Any]
    env: dict[fx.Node, fx.Node]
    buffers: dict[fx.Node, fx.Node]
    reciprocal_gaps: fx.Node
    weights: fx.Node


_Fill = Callable[[Region, _Branch], list[fx.Node]]


def _copy(
    node: fx.Node, env: dict[fx.Node, fx.Node], graph: fx.Graph, owner: fx.GraphModule, attributes: dict[str, Any]
) -> fx.Node:
    if node.op == "get_attr":
        attributes[str(node.target)] = attribute(owner, node)
    return graph.node_copy(node, env.__getitem__)
