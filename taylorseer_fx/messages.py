"""The longer texts of errors and warnings, apart from the code that decides to issue them."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from taylorseer_fx.compat import list_mode_options
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.graph_breaks import GraphBreak
from taylorseer_fx.passes.regions import RegionSet
from taylorseer_fx.stream_stats import StreamStats
from taylorseer_fx.text import format_bytes

MAX_NAMES = 8  # of streams, in a message


def nothing_to_forecast(found: RegionSet) -> str:
    """The text for a graph that holds no region."""
    lines = [
        "no attention or MLP to forecast in this graph. Looked for residual adds `x + f(x)`, scaled, gated or mixed, where "
        f"f contains a matrix product, a convolution or attention; found {found.num_heavy} such "
        f"operator{'s' * (found.num_heavy != 1)}{_taken_apart(found)} and {found.num_residual_adds} residual "
        f"add{'s' * (found.num_residual_adds != 1)}{', none of which can be forecast' if found.rejected else ''}."
    ]
    lines += [f"  {entry}" for entry in found.rejected]
    if found.near_misses:
        lines += ["Sums that come near, and what stopped each:", *(f"  {miss}" for miss in found.near_misses)]
    return "\n".join(lines)


def _taken_apart(found: RegionSet) -> str:
    if not found.num_taken_apart:
        return ""
    return f" ({found.num_taken_apart} of them, of one row, computed by torch without a product, so that nothing can be saved)"


def broken(graph_break: GraphBreak | None) -> str:
    """The text for a model of several graphs, one of which holds no region; ``graph_break`` is the first break, if known."""
    text = "the model does not compile to one graph, and a part of it holds nothing to forecast. explain() lists the parts"
    if graph_break is None:
        return f"{text}, where each ends, and what avoids the breaks."
    return f"{text}. First break: {graph_break}. To avoid it: {graph_break.advice}."


GRADIENTS = (
    "gradients are enabled and some inputs or parameters require them, so this graph is compiled as plain torch.compile would "
    "and nothing is forecast. Call the model under torch.no_grad() or torch.inference_mode()."
)


def gathered_by_hooks(num_bytes: int) -> str:
    """The weights are gathered around the compiled code, whatever it reads."""
    return (
        f"the weights are sharded by fully_shard, whose hooks gather all {format_bytes(num_bytes)} of them in every step, except "
        "those kept by reshard_after_forward=False: a forecast step computes little, but communicates as much as a full one. "
        "Gather them inside the graph instead, where a forecast step gathers the weights that it reads and no others "
        "(docs/parallel.md shows how), or keep them gathered if each rank has memory for the whole model."
    )


def nothing_compiled(num_plain: int) -> str:
    """The text where ``explain`` has no graph to describe; ``num_plain`` graphs were compiled with gradients."""
    if not num_plain:
        return "explain() describes a compiled graph: call the compiled model once first"
    graphs = "the only graph was" if num_plain == 1 else f"all {num_plain} graphs were"
    return (
        f"explain() has nothing to describe: {graphs} compiled with gradients enabled, and so as plain torch.compile would. "
        "Call the model under torch.no_grad() or torch.inference_mode(), then ask again."
    )


def unknown_stream(held: Iterable[StreamStats]) -> str:
    """The hint where ``release`` was asked for a stream that is not held."""
    names = [repr(entry.name) for entry in held if entry.name is not None]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    those = f"Held are {', '.join(names[:MAX_NAMES])}{more}." if names else "None is held."
    return f"{those} missing_ok=True for one that may have been evicted, or have expired."


def where_to_put(arguments: Mapping[str, Any]) -> str:
    """The hint on ``mode`` or ``options`` that ``torch.compile`` was given beside a backend object."""
    if arguments.get("mode") is not None:
        return f"{mode_in_options(arguments['mode'])} Give them to the backend: taylorseer_backend(compiler_options={{...}})."
    options = dict(arguments.get("options") or {})
    ours = {name: options.pop(name) for name in list(options) if name in {f.name for f in fields(BackendConfig)}}
    given = [f"{name}={value!r}" for name, value in ours.items()] + ([f"compiler_options={options!r}"] if options else [])
    return f"Give them to the backend: taylorseer_backend({', '.join(given)})."


def mode_in_options(mode: object) -> str:
    """Describe a mode of ``torch.compile`` as options of Inductor, CUDA graphs apart, which are ours to make."""
    try:
        options = dict(list_mode_options(mode))  # type: ignore[arg-type]
    except RuntimeError:  # torch knows no such mode
        return "torch._inductor.list_mode_options() lists the modes that there are, as options of Inductor."
    has_cuda_graphs = options.pop("triton.cudagraphs", False)
    graphs = " and CUDA graphs, which are made without asking" if has_cuda_graphs else ""
    return (
        f"To Inductor this mode is the options {options}{graphs}."
        if options
        else f"This mode is no options{graphs}: leave it out."
    )
