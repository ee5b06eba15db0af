"""What is said to users: longer texts of errors and warnings, apart from the code that decides to say them."""

from taylorseer_fx.graph_breaks import GraphBreak
from taylorseer_fx.passes.regions import RegionSet


def nothing_to_forecast(found: RegionSet) -> str:
    """A graph holds no region."""
    rejected = "".join(f"\n  {entry}" for entry in found.rejected)
    return (
        "no attention or MLP to forecast in this graph. Looked for residual adds `x + f(x)`, with or without a gate, where "
        f"f contains a matrix product, a convolution or attention; found {found.num_heavy} such operators and "
        f"{found.num_residual_adds} residual adds{', none of which can be forecast:' + rejected if rejected else ''}. "
    )


def broken(graph_break: GraphBreak | None) -> str:
    """A model compiles to several graphs, one of which holds no region; ``graph_break`` is the first break, if known."""
    text = "the model does not compile to one graph, and a part of it holds nothing to forecast. explain() lists the parts"
    if graph_break is None:
        return f"{text}, where each ends, and what avoids the breaks."
    return f"{text}. First break: {graph_break}. To avoid it: {graph_break.advice}."
