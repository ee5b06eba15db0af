"""The names of places in the model where nodes were written, for people. Never read for a decision."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import fx

_NOISE = re.compile(r"""\.?__dict__|\._modules|\[['"]_modules['"]\]|L\[['"]\w+['"]\]""")


def module_path(node: fx.Node) -> tuple[str, ...]:
    """``("transformer_blocks", "0", "attn1")``, or ``()`` where the node carries no module stack."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ()
    raw, _ = next(reversed(stack.values()))
    dotted = re.sub(r"""\[['"]?(\w+)['"]?\]""", r".\1", _NOISE.sub("", raw))
    return tuple(part for part in dotted.split("@")[0].split(".") if part)


def common_path(nodes: Iterable[fx.Node], fallback: Sequence[fx.Node] = ()) -> str:
    """The innermost module that contains all ``nodes``; the name of the last fallback node where there is none."""
    paths = [path for path in map(module_path, nodes) if path]
    if not paths:
        return fallback[-1].name if fallback else "?"
    shared = paths[0]
    for path in paths[1:]:
        length = next((i for i, (a, b) in enumerate(zip(shared, path, strict=False)) if a != b), min(len(shared), len(path)))
        shared = shared[:length]
    return ".".join(shared) or (fallback[-1].name if fallback else "?")


def span_path(nodes: Sequence[fx.Node]) -> str:
    """The innermost module that contains all ``nodes``, in graph order; where there is none, the first and the last one."""
    paths = [".".join(path) for path in map(module_path, nodes) if path]
    shared = common_path(nodes)
    return f"{paths[0]} to {paths[-1]}" if paths and shared not in (*paths, *_parents(paths[0])) else shared


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def source_line(node: fx.Node) -> str:
    """``block.py:12 x = x + gate * branch``: the innermost line of the model that ``node`` was written in, or its name."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").strip().splitlines()]
    places = [i for i, line in enumerate(lines) if line.startswith("File ")]
    match = re.match(r'File "(.*)", line (\d+)', lines[places[-1]]) if places else None
    if match is None:
        return node.name
    code = lines[places[-1] + 1] if places[-1] + 1 < len(lines) else ""
    return f"{Path(match[1]).name}:{match[2]} {code}".strip()
