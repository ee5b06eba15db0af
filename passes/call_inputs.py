"""Sort the inputs of a graph by their role in a call.

%weights        which layer the graph is called for
%timestep       may be the time                        (``time_inputs``)
%latents        the sample, new with every step        [2, 16, 64] in, [2, 16, 64] out
%prompt, ...    the conditioning: the same in every step of a stream
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import fx
from torch.fx.experimental.symbolic_shapes import guard_or_false, sym_eq

from taylorseer_fx.passes.emit import outputs
from taylorseer_fx.passes.ops import tensor_meta
from taylorseer_fx.passes.regions import RegionSet
from taylorseer_fx.passes.time_inputs import find_time_inputs


@dataclass(frozen=True)
class CallInputs:
    """Positions of a graph's inputs; ``weight`` is one that identifies the layer, should it serve several, None without weights.

    ``time`` are the candidates, and ``has_time`` whether a time is among them for certain; ``samples`` change with every step;
    ``conditioning`` are all other tensors of the call, which in a part of a model may be computed in another part.
    """

    weight: int | None
    time: tuple[int, ...]
    has_time: bool
    samples: tuple[int, ...]
    conditioning: tuple[int, ...]
    is_part: bool = False


def sort_inputs(graph: fx.Graph, static_inputs: Iterable[int], found: RegionSet, is_part: bool) -> CallInputs:
    """Sort the placeholders of a canonical graph, whose weights are at ``static_inputs``."""
    static = list(static_inputs)
    placeholders = graph.find_nodes(op="placeholder")
    weights = {placeholders[i] for i in static}
    samples = find_samples(graph, weights, is_part)
    time, has_time = find_time_inputs(graph, weights, samples, is_part)
    known = {*static, *samples, *time}
    rest = (i for i, node in enumerate(placeholders) if i not in known and tensor_meta(node) is not None)
    return CallInputs(_telling_weight(placeholders, static, found), time, has_time, samples, tuple(rest), is_part)


def find_samples(graph: fx.Graph, weights: set[fx.Node], is_part: bool = False) -> tuple[int, ...]:
    """Positions of the inputs that hold the sample: those shaped as an output is, but for one dimension (its channels), and with
    more than one element a sample. Where several suit an output, it is the most similar, and then the first. In a part of a
    broken model, whose outputs may be anything, no dimension may differ.
    """
    placeholders = graph.find_nodes(op="placeholder")
    inputs = [i for i, node in enumerate(placeholders) if node not in weights and _may_be_sample(node)]
    found: dict[int, None] = {}
    for output in outputs(graph):
        if isinstance(output, fx.Node) and tensor_meta(output) is not None:
            unlike = {i: _num_unlike(placeholders[i], output) for i in inputs if i not in found}
            suiting = [i for i in unlike if unlike[i] <= (0 if is_part else 1)]
            if suiting:
                found[min(suiting, key=unlike.__getitem__)] = None
    return tuple(sorted(found))


def _may_be_sample(node: fx.Node) -> bool:
    meta = tensor_meta(node)
    return meta is not None and meta.dtype.is_floating_point and meta.dim() > 1 and any(size != 1 for size in meta.shape[1:])


def _num_unlike(node: fx.Node, output: fx.Node) -> int:
    """The number of dimensions in which an input differs from an output; all, where their ranks differ."""
    a, b = tensor_meta(node), tensor_meta(output)
    assert a is not None
    assert b is not None
    if a.dim() != b.dim():
        return a.dim() + b.dim()
    return sum(not guard_or_false(sym_eq(left, right)) for left, right in zip(a.shape, b.shape, strict=True))


def _telling_weight(placeholders: Sequence[fx.Node], static_inputs: list[int], found: RegionSet) -> int | None:
    """The position of a weight that identifies the layer, should the graph serve several; a region's weight if possible."""
    in_regions = {node for region in found.regions for node in region.live_ins}
    return next((i for i in static_inputs if placeholders[i] in in_regions), next(iter(static_inputs), None))
