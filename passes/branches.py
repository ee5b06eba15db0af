"""Analyse the residual branches of a graph: their heavy operators, and which of them depend on which.

    %h = mm(%x, %up)  ->  %F = mm(%gelu, %down)  ->  %out = add(%x, %F)        work of %F: [mm, mm]

The work of a branch is the heavy operators that die with its feature alone, or with those that share them (joint attention).
"""

import torch
from torch import fx

from taylorseer_fx.passes.classify import activation_nodes, is_attention
from taylorseer_fx.passes.dataflow import seed_reach
from taylorseer_fx.passes.flops import node_flops
from taylorseer_fx.passes.ops import CONTRACTION_OPERANDS, aten, contraction_operands, is_heavy, packet, tensor_meta, undress
from taylorseer_fx.passes.ownership import find_owners
from taylorseer_fx.passes.regions import Feature

ResidualStreams = dict[fx.Node, list[Feature]]


class Branches:
    """The branches of ``found``, in a graph with these weights."""

    def __init__(self, graph: fx.Graph, found: tuple[Feature, ...], parameters: set[fx.Node]) -> None:
        self.found = found
        self.activations = activation_nodes(graph, parameters)
        self.inputs = [node for node in graph.find_nodes(op="placeholder") if node not in parameters and _says_something(node)]
        ends = [node for feature in found for node in (feature.node, feature.residual.add, feature.residual.source)]
        self.reach = seed_reach(graph, [*self.inputs, *ends])
        self.work: dict[Feature, list[fx.Node]] = {feature: [] for feature in found}
        for node, owners in find_owners(graph, found, roots=[feature.residual.add for feature in found]).items():
            for feature in owners if is_heavy(node) else ():
                self.work[feature].append(node)
        self.residual_streams: ResidualStreams = {}
        for feature in found:
            self.residual_streams.setdefault(feature.residual.root, []).append(feature)
        self.main = max(self.residual_streams, key=lambda root: self._weight(self.residual_streams[root]), default=None)

    def attends(self, feature: Feature) -> bool:
        return any(is_attention(node, self.activations) for node in self.work[feature])

    def _weight(self, features: list[Feature]) -> tuple[bool, int, int]:
        """A rank: attention first, since only tokens attend; then FLOPs; then numbers, since FLOPs may not be known."""
        work = {node for feature in features for node in self.work[feature]}
        return any(map(self.attends, features)), sum(map(node_flops, work)), len(work)

    def reads(self, node: fx.Node) -> set[fx.Node]:
        """The inputs that ``node`` depends on."""
        return {source for source in self.inputs if self.reach.depends(node, source)}

    def needs(self, later: Feature, earlier: Feature) -> bool:
        """Does the branch of ``later`` depend on that of ``earlier``, or is added to it?"""
        return later is not earlier and self.reach.depends(later.residual.add, earlier.node)

    def on_stream(self, feature: Feature) -> list[fx.Node]:
        """The work that is done on the residual stream, not on its modulation or on a context."""
        return [node for node in self.work[feature] if self.reach.depends(node, feature.residual.source)]

    def is_plain(self, feature: Feature) -> bool:
        """Is it one product, or convolutions between which there are no more channels than before and after?"""
        work = self.on_stream(feature)
        if not work or self.attends(feature) or any(packet(node) not in CONTRACTION_OPERANDS for node in work):
            return False
        return len(work) == 1 or all(map(_keeps_channels, work))

    def convolves(self, feature: Feature) -> bool:
        return all(packet(node) is aten.convolution for node in self.on_stream(feature))

    def likeness(self, feature: Feature) -> tuple[object, ...]:
        """The operators and sizes of its work: equal in blocks that come again."""
        return tuple((packet(node), *map(_shape, contraction_operands(node))) for node in self.on_stream(feature))

    def brings_in(self, feature: Feature) -> bool:
        """Is its work one product of a state of another residual stream?"""
        roots = {other.residual.add: other.residual.root for other in self.found}
        read = [undress(operand) for node in self.on_stream(feature) for operand in contraction_operands(node)]
        return any(node in roots and roots[node] is not feature.residual.root for node in read)


def _says_something(node: fx.Node) -> bool:
    """Does the input hold anything but a mask, which only chooses?"""
    meta = tensor_meta(node)
    return meta is not None and meta.dtype is not torch.bool


def _keeps_channels(node: fx.Node) -> bool:
    before, after = tensor_meta(contraction_operands(node)[0]), tensor_meta(node)
    return packet(node) is aten.convolution and before is not None and after is not None and before.shape[1] == after.shape[1]


def _shape(node: fx.Node) -> str:
    meta = tensor_meta(node)
    return str(tuple(meta.shape)) if meta is not None else ""
