"""Count the arithmetic of a graph: matrix products, convolutions and attention, 2 FLOPs per multiply-add.

The formulas are torch's own (``torch.utils.flop_counter``) but for quantised products, fed with the shapes in ``meta["val"]``, so
a graph traced on the meta device counts as well as any other.
"""

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry, sdpa_flop

from taylorseer_fx.passes.ops import FUSED_ATTENTION, QUANTISED_PRODUCTS, any_overload, contraction_operands, tensor_meta
from taylorseer_fx.passes.sizes import hint


def count_flops(graph: fx.Graph) -> int:
    """Count the FLOPs of one run of ``graph``."""
    return sum(map(node_flops, graph.nodes))


def node_flops(node: fx.Node) -> int:
    """Count the FLOPs of one node; zero where there is no formula for its operator."""
    if node.op != "call_function":
        return 0
    whole = any_overload(node)
    formula = flop_registry.get(whole) or (sdpa_flop if whole in FUSED_ATTENTION else None)
    if formula is None:
        return _rows_times_columns(node) if whole in QUANTISED_PRODUCTS else 0
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: arg.meta.get("val"))  # none for the bodies of flex attention
    shaped = (arg for arg in args if not isinstance(arg, torch.dtype))  # ``addmm.dtype`` has one where the formula takes a shape
    return hint(formula(*shaped, **kwargs, out_val=node.meta["val"]))


def _rows_times_columns(node: fx.Node) -> int:
    """The FLOPs of a product, each of whose results is a sum over the last dimension of its first operand."""
    rows, result = tensor_meta(contraction_operands(node)[0]), tensor_meta(node)
    return 2 * hint(result.numel()) * hint(rows.shape[-1]) if rows is not None and result is not None else 0
