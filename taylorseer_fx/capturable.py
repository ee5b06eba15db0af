"""Can the graph of a step kind be captured as a CUDA graph? Its operators show it before anything runs.

Most of what cannot be captured shows when it is tried (``runtime/cuda_graphs.py``). Reported here is what capturing would not
notice, or what has a better name now: an input on the CPU, whose value would be baked in; inputs on several devices; a tensor on
another device within the graph, which has to be waited for; a write into an input that is copied before each replay; a result
whose shape, or a number whose value, depends on data.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from taylorseer_fx.runtime.cuda_graphs import CapturePlan

_UNSAFE_TAGS = tuple(
    getattr(torch.Tag, name)
    for name in ("data_dependent_output", "dynamic_output_shape", "cudagraph_unsafe")
    if hasattr(torch.Tag, name)
)


def plan_capture(gm: fx.GraphModule, inputs: Sequence[Any], static: Collection[int]) -> CapturePlan:
    """Plan how to capture ``gm``, called with ``inputs`` (fake ones do), of which those at ``static`` stay in place."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    names = {i: placeholders[i].name for i, value in enumerate(inputs) if isinstance(value, Tensor)}
    devices = {inputs[i].device: name for i, name in names.items()}
    device = next((d for d in devices if d.type != "cpu"), next(iter(devices), None))
    staying = tuple(sorted(i for i in static if i in names))
    others = tuple(i for i in range(len(inputs)) if i not in staying)
    strangers = [f"input {name!r} is on {d}, others on {device}" for d, name in devices.items() if d != device]
    written = _written_inputs(gm, {placeholders[i] for i in others})
    obstacles = [*strangers, *written, *_unsafe_operators(gm), *_tensors_elsewhere(gm, device)]
    return CapturePlan(staying, others, device, obstacles[0] if obstacles else "")


def _written_inputs(gm: fx.GraphModule, copied: Collection[fx.Node]) -> list[str]:
    """Find writes into inputs: AOTAutograd leaves them at the end of the graph of a model that changes an argument in place."""
    return [
        f"{node.target} writes into input {target.name!r}"
        for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default)
        if (target := node.args[0]) in copied
    ]


def _tensors_elsewhere(gm: fx.GraphModule, device: torch.device | None) -> list[str]:
    """Copies from and to the host wait, or read memory that may be gone at a replay.

    Not those of what is made from nothing there, ``torch.arange(n).to(device)``: Inductor makes it on the device. Nor of a
    constant without dimensions, which is a number to it. Should it not be so, capturing shows it.
    """
    harmless, found = set[fx.Node](), []
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if node.op not in ("call_function", "get_attr") or not isinstance(value, Tensor) or value.device == device:
            continue
        if node.op == "get_attr":
            is_harmless = value.ndim == 0
        else:
            is_harmless = all(source in harmless for source in node.all_input_nodes if isinstance(source.meta.get("val"), Tensor))
        if is_harmless:
            harmless.add(node)
        else:
            found.append(f"{node.target} gives a tensor on {value.device}, inputs are on {device}")
    return found


def _unsafe_operators(gm: fx.GraphModule) -> list[str]:
    return [
        f"{node.target} has a data-dependent result, which requires a device synchronisation"
        for node in gm.graph.nodes
        if any(tag in _UNSAFE_TAGS for tag in getattr(node.target, "tags", ()))
    ]
