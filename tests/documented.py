"""The outputs that the docs show: what ``explain``, ``plan`` and ``stats`` print of a tiny model, and one block after each pass.

``python -m tests.documented`` writes them between their marks; ``test_docs.py`` compares every line but the milliseconds.
"""

import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from taylorseer_fx import Stats, plan, taylorseer_backend
from taylorseer_fx.bench.models import dit
from taylorseer_fx.passes.pipeline import run_passes
from taylorseer_fx.passes.runner import StageRecord

DOCS = Path(__file__).parents[1] / "docs"
NUM_STEPS = 13
WIDTH = 110


class Block(nn.Module):
    """An MLP with an adaLN gate, the smallest thing that is a region, and a head that reads half of the tokens."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(time)[:, None].chunk(3, dim=-1)
        x = x + gate * self.down(torch.relu(self.up(x * (1 + scale) + shift)))
        return self.head(x[:, :4])


def tiny_dit() -> nn.Module:
    """Two blocks of width 16, as they are initialised."""
    torch.manual_seed(0)
    return dit(num_layers=2, num_heads=2, head_dim=8, sample_size=8).eval().requires_grad_(False)


def inputs(step: int) -> dict[str, Any]:
    """Arguments of ``tiny_dit``: latents that move a little from step to step."""
    first, direction = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return {
        "hidden_states": first + 0.1 * step * direction,
        "timestep": torch.full((1,), 980 - 70 * step),
        "class_labels": torch.tensor([1]),
        "return_dict": False,
    }


def explain_and_stats() -> tuple[str, str]:
    """What both print after a run of ``tiny_dit``, with the defaults; nothing is compiled by Inductor."""
    backend = taylorseer_backend(compiler="eager")
    model = torch.compile(tiny_dit(), backend=backend)
    with torch.no_grad():
        for step in range(NUM_STEPS):
            model(**inputs(step))
    return str(backend.explain()), _lines(backend.stats())


def _lines(stats: Stats) -> str:
    lines = (f"    {entry.name}={getattr(stats, entry.name)!r}," for entry in fields(stats))
    return "\n".join(["Stats(", *lines, ")"])


def plan_text() -> str:
    """What ``plan`` prints of the same model, on the meta device."""
    with torch.device("meta"):
        model = tiny_dit()
        arguments = {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in inputs(0).items()}
    return str(plan(model, arguments, num_steps=50, order=2, interval=6))


# Of the stages, those that change the graph of the block, and the heading of each.
SHOWN = {
    "canonicalize": "Canonical: what the passes work on",
    "guard_regions": "`guard_regions`: the region becomes a guarded branch",
    "clean_up_full": "`specialize`, `clean_up`: the full step",
    "specialize_forecast": "`specialize`: the forecast step, before it is narrowed",
    "clean_up_forecast": "`narrow`, `clean_up`: the forecast step, as it is compiled",
}


def stages_of_a_block() -> str:
    """The graph of ``Block`` after each pass that changes it, as Markdown."""
    seen: dict[str, str] = {}

    def watch(record: StageRecord, gm: fx.GraphModule) -> None:
        seen.setdefault(record.name, graph_text(gm))

    passes = _passes_of(Block(), (torch.zeros(1, 8, 8), torch.zeros(1, 8)))
    run_passes(passes.graph(), **passes.arguments, watch=watch)
    return "\n\n".join(f"### {heading}\n\n```text\n{seen[name]}\n```" for name, heading in SHOWN.items())


def _passes_of(model: nn.Module, example: tuple[Tensor, ...]) -> Any:
    backend = taylorseer_backend(compiler="eager")
    with torch.no_grad(), backend.stream("block", step=0):
        torch.compile(model, backend=backend)(*example)
    return backend._compiled_graphs[0].passes


def graph_text(gm: fx.GraphModule) -> str:
    """A line per node: name, shape, operator, arguments; the arms of a guarded branch below it."""
    return "\n".join(_node_lines(gm))


def _node_lines(gm: fx.GraphModule) -> Iterator[str]:
    taken = ", ".join(f"{node.name} {_shape(node)}" for node in gm.graph.find_nodes(op="placeholder"))
    yield from textwrap.wrap(f"inputs: {taken}", WIDTH, subsequent_indent=" " * 8)
    for node in gm.graph.nodes:
        if node.op == "output":
            yield f"return {', '.join(map(str, node.args[0]))}"
        elif node.op == "call_function":
            target = str(getattr(node.target, "overloadpacket", node.target)).removeprefix("aten.")
            target = "getitem" if "getitem" in target else target
            yield f"{node.name}: {_shape(node)} = {target}({', '.join(map(str, node.args))})"
            for arm in node.args:
                if isinstance(arm, fx.Node) and arm.op == "get_attr":
                    yield f"    {arm.name}:"
                    yield from (f"        {line}" for line in _node_lines(getattr(gm, str(arm.target))))


def _shape(node: fx.Node) -> str:
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return f"[{', '.join(map(str, value.shape))}]"
    return f"({', '.join(str(list(each.shape)) for each in value)})" if isinstance(value, (tuple, list)) else "-"


def _block(text: str) -> str:
    return f"```text\n{text}\n```"


def outputs() -> dict[str, dict[str, str]]:
    """For each page of the docs what stands between its marks, by their names."""
    explained, counted = explain_and_stats()
    return {
        "reports.md": {"explain": _block(explained), "stats": _block(counted), "plan": _block(plan_text())},
        "how_it_works.md": {"block": stages_of_a_block()},
    }


def written(text: str, blocks: dict[str, str]) -> str:
    """``text`` with each block between its marks."""
    for name, block in blocks.items():
        marks = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(marks[0])
        text = f"{before}{marks[0]}\n{block}\n{marks[1]}{rest.split(marks[1])[1]}"
    return text


def without_times(text: str) -> str:
    """The table of passes ends in milliseconds, which no two runs share."""
    timeless = re.sub(r"(?m)^(\w+ +\d+) +[\d.]+$", r"\1", text)
    return re.sub(r"[ -]{2,}", "  ", timeless)  # nor how wide that makes the columns


def main(write: Callable[[Path, str], Any] = Path.write_text) -> None:
    """Write every output into its page."""
    for name, blocks in outputs().items():
        write(DOCS / name, written((DOCS / name).read_text(), blocks))


if __name__ == "__main__":
    main()
