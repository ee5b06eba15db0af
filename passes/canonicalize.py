"""Bring a traced graph into the form that the region finder reads: no dead code, equal expressions written once, adds as adds.

    before:  %c1 = convert_element_type(%x, float32)      after:  %c1 = convert_element_type(%x, float32)
             %c2 = convert_element_type(%x, float32)              %m = mul(%g, %f)
             %a = addcmul(%c1, %g, %f)                            %a = add(%c1, %m)
             %b = mul(%c2, 2), %dead = mul(%x, 2)                 %b = mul(%c1, 2)

Models that cast around every residual add (Wan) hide the residual stream behind a fresh cast per use; merged, it is one node
again. Dead code matters too: the last block's text update is often still in the graph, and would pass for a feature.
"""

from collections.abc import Collection

from torch import fx

from taylorseer_fx.compat import fx_graph_cse
from taylorseer_fx.passes.decompose import decompose
from taylorseer_fx.passes.effects import eliminate_dead_code
from taylorseer_fx.passes.emit import graph_module
from taylorseer_fx.passes.spelled_sums import write_sums_as_adds


def canonicalize(gm: fx.GraphModule, registered: Collection[str] | None = None) -> fx.GraphModule:
    """A canonical copy of ``gm``; the placeholders keep their number and order.

    Args:
        gm: functional ATen graph; left as it is.
        registered: names of the registered residual operators to write out; None: all there are.
    """
    graph = fx_graph_cse(gm.graph)
    if decompose(graph, registered):
        graph = fx_graph_cse(graph)
    write_sums_as_adds(graph)
    eliminate_dead_code(graph)
    return graph_module(gm, graph)
