"""Count the bytes that a graph moves, and the fewest that it could.

    moved   with every pointwise chain fused and nothing else: through memory go inputs, outputs, and whatever a matrix product,
            a convolution, attention or a reduction reads or writes; each is written once, and read once by each of these and
            once by all pointwise operators together
    floor   every input, as far as it is read, once; the outputs, and what is written in place, once

An estimate to compare graphs by: a compiler may do better (an epilogue) or worse (a chain that is too long).
"""

import operator
from collections import Counter
from dataclasses import dataclass

import torch
from torch import fx

from taylorseer_fx.passes.demands import Demands, demanded
from taylorseer_fx.passes.emit import outputs
from taylorseer_fx.passes.ops import CASTS, aten, dressed_input, is_heavy, packet, tensor_meta
from taylorseer_fx.passes.sizes import hint
from taylorseer_fx.passes.windows import num_elements


@dataclass(frozen=True)
class Traffic:
    """Bytes of one run of a graph."""

    read: int
    written: int
    floor: int


def count_traffic(graph: fx.Graph, demands: Demands | None = None) -> Traffic:
    """The bytes that ``graph`` moves; ``demands``: what is read of each node, where that is known."""
    demands = demanded(graph) if demands is None else demands
    stores = [node for node in demands if packet(node) is aten.copy_]
    results = {_origin(node) for node in outputs(graph) if isinstance(node, fx.Node)}
    barriers = [node for node in demands if _is_barrier(node)]
    by_barriers = Counter(source for node in barriers for source in {_origin(source) for source in node.all_input_nodes})
    fused = [node for node in demands if node.op == "call_function" and not _is_barrier(node) and not _is_view(node)]
    by_chains = {_origin(source) for node in fused for source in node.all_input_nodes[-1 if node in stores else 0 :]}
    gathers = [node for node in demands if packet(node) in _GATHERS]
    gathered = sum(_num_bytes(node, demands) for node in gathers)
    tables = {_origin(node.all_input_nodes[0]) for node in gathers}
    inputs = {node for node in demands if node.op in ("placeholder", "get_attr")} - tables
    moved = (inputs | results | set(barriers) | set(by_barriers)) - tables
    read_at_all = inputs - {store.all_input_nodes[0] for store in stores}
    return Traffic(
        read=gathered + sum(_num_bytes(node, demands) * (by_barriers[node] + (node in by_chains)) for node in moved),
        written=sum(_num_bytes(node, demands) for node in [*(moved - inputs), *stores]),
        floor=gathered + sum(_num_bytes(node, demands) for node in [*read_at_all, *results, *stores]),
    )


# Operators that read a few rows of their first input, a table: as many bytes as they return.
_GATHERS = (aten.embedding, aten.index, aten.index_select, aten.gather)


def _is_barrier(node: fx.Node) -> bool:
    return node.op == "call_function" and (is_heavy(node) or torch.Tag.reduction in getattr(node.target, "tags", ()))


def _origin(node: fx.Node) -> fx.Node:
    """The tensor that ``node`` is a view of, or the operator that it is a result of."""
    while _is_view(node):
        node = dressed_input(node) or node.all_input_nodes[0]
    return node


def _is_view(node: fx.Node) -> bool:
    is_dress = dressed_input(node) is not None and packet(node) not in _COMPUTED
    return node.target is operator.getitem or is_dress or bool(getattr(node.target, "is_view", False))


# Dress that is an elementwise operator all the same.
_COMPUTED = CASTS | {aten.mul, aten.where, aten.clamp, aten.clamp_min, aten.clamp_max}


def _num_bytes(node: fx.Node, demands: Demands) -> int:
    """The bytes of the parts of ``node`` that are read."""
    meta = tensor_meta(node)
    if meta is None:
        values = node.meta.get("val")
        metas = [value for value in values if isinstance(value, torch.Tensor)] if isinstance(values, (tuple, list)) else []
        return sum(hint(value.numel()) * value.dtype.itemsize for value in metas)
    sizes = [hint(size) for size in meta.shape]
    return meta.dtype.itemsize * sum(num_elements(sizes, window) for window in demands.get(node, ()))
