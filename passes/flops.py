"""Count the arithmetic of a graph: matrix products, convolutions and attention, 2 FLOPs a multiply-add.

The formulas are torch's own (``torch.utils.flop_counter``), fed with the shapes in ``meta["val"]``, so a graph traced on the meta
device counts as well as any other.
"""

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry, sdpa_flop

from taylorseer_fx.passes.ops import FUSED_ATTENTION, any_overload
from taylorseer_fx.passes.sizes import hint


def count_flops(graph: fx.Graph) -> int:
    """FLOPs of one run of ``graph``."""
    return sum(map(node_flops, graph.nodes))


def node_flops(node: fx.Node) -> int:
    """FLOPs of one node; zero where torch has no formula for its operator."""
    if node.op != "call_function":
        return 0
    whole = any_overload(node)
    formula = flop_registry.get(whole) or (sdpa_flop if whole in FUSED_ATTENTION else None)
    if formula is None:
        return 0
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: arg.meta.get("val"))  # none for the bodies of flex attention
    shaped = (arg for arg in args if not isinstance(arg, torch.dtype))  # ``addmm.dtype`` has one where the formula takes a shape
    return hint(formula(*shaped, **kwargs, out_val=node.meta["val"]))
