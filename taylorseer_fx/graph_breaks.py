"""Describe where and why Dynamo ended a graph before the end of the model, and what avoids a break of that kind."""

import re
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import FrameSummary
from typing import Any

from torch import fx


@dataclass(frozen=True)
class GraphBreak:
    """The line of the model that broke its graph, Dynamo's reason, and what avoids a break of that kind."""

    where: str
    reason: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.where} ({self.reason})"


def graph_break_after(gm: fx.GraphModule) -> GraphBreak | None:
    """The break at the end of a Dynamo graph; None where the compiled function returns."""
    cause = getattr(gm, "compile_subgraph_reason", None)
    if cause is None or not cause.graph_break:
        return None
    frame = model_frame(cause.user_stack, _module_files(gm))
    where = f"{Path(frame.filename).name}:{frame.lineno} {(frame.line or '').strip()}".strip() if frame is not None else "?"
    return GraphBreak(where, cause.reason.strip().splitlines()[0], advice_on(cause.reason))


def model_frame(stack: Sequence[FrameSummary], module_files: Iterable[str]) -> FrameSummary | None:
    """The innermost frame, of a stack that begins where the model is entered, in code that comes with the model.

    That is code of the package that one of the model's modules is from, or of no package at all: a line of a library that the
    model merely calls helps little, and the line that calls it much. Failing that, the innermost frame that is not torch's or
    Python's own.
    """
    if not stack:
        return None
    owners = {owner_of(file) for file in (*module_files, stack[0].filename)} - {"torch", PYTHON} | {USER}
    own = [frame for frame in stack if owner_of(frame.filename) in owners]
    foreign = [frame for frame in stack if owner_of(frame.filename) not in ("torch", PYTHON)]
    return (own or foreign or list(stack))[-1]


USER, PYTHON = "<user>", "<python>"
_STANDARD_LIBRARY = tuple({f"{sysconfig.get_paths()[name]}/" for name in ("stdlib", "platstdlib")})


def owner_of(filename: str) -> str:
    """The installed package that a source file is part of; or Python itself, or else the user."""
    parts = Path(filename).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts[:-1]:
            return Path(parts[parts.index(folder) + 1]).stem
    is_python = filename.startswith((*_STANDARD_LIBRARY, "<frozen", "<string>"))
    return PYTHON if is_python else USER


def _module_files(gm: fx.GraphModule) -> set[str]:
    """The source files of the modules whose code is in the graph."""
    types: set[Any] = {kind for node in gm.graph.nodes for _, kind in (node.meta.get("nn_module_stack") or {}).values()}
    modules = (sys.modules.get(getattr(kind, "__module__", "")) for kind in types)
    return {file for module in modules if (file := getattr(module, "__file__", None)) is not None}


def advice_on(reason: str) -> str:
    """The remedy for a break of this kind, by Dynamo's words for it; where they are new, Dynamo's own hint."""
    for pattern, advice in _ADVICE:
        if re.search(pattern, reason):
            return advice
    hint = re.search(r"^\s*Hint: (.*)$", reason, re.MULTILINE)
    return f"Dynamo's hint: {hint[1].strip()}" if hint is not None else _OTHERWISE


_ADVICE = (
    (
        r"builtin operator `print`|`_warnings\.warn`",
        "take the call out of the forward, or let Dynamo put it behind the graph, which it can do for print: "
        "torch._dynamo.config.reorderable_logging_functions.add(print)",
    ),
    (
        r"logging\.Logger",
        "take the logging out of the forward, or have it ignored: "
        "torch._dynamo.config.ignore_logging_functions.add(logging.Logger.warning), likewise for its other methods",
    ),
    (
        r"\bitem\(\)|_local_scalar_dense",
        "a number is read from a tensor (.item(), .tolist(), int(...)): give the model that number as a Python int, read before "
        "the call, or set torch._dynamo.config.capture_scalar_outputs = True before compiling, which helps where no branch or "
        "loop of the model depends on the number",
    ),
    (
        r"^Dynamic shape operator",
        "the size of a result depends on data (nonzero, x[mask]): compute the indices before the call, or set "
        "torch._dynamo.config.capture_dynamic_output_shape_ops = True before compiling",
    ),
    (
        r"[Dd]ata-dependent|generic_jump",
        "a branch depends on the values of a tensor: decide it by a Python value before the call, or compute both sides and take "
        "torch.where, or use torch.cond",
    ),
    (
        r"torch\.compiler\.disable|_dynamo\.disable",
        "a function is kept from the compiler by torch.compiler.disable: take that away, or call the function before the model",
    ),
    (r"graph_break\(\)", "take away the call of torch._dynamo.graph_break()"),
    (
        r"generator",
        "a generator breaks the graph in its middle: make a list of it, or take away what breaks within",
    ),
    (
        r"[Bb]uiltin|C extension|marked as skipped",
        "the function is not written in Python, or not for Dynamo: call it before the model; where its result never changes, "
        "wrap the call in a function with @torch.compiler.assume_constant_result; where it computes tensors, make it an operator "
        "by torch.library.custom_op",
    ),
)

_OTHERWISE = "TORCH_LOGS=graph_breaks prints what Dynamo knows of it"
