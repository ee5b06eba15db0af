"""The figures of a model's graphs: those of plain ``torch.compile``, and ours of each granularity and step kind."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import fx

from benchmarks.cuda_codegen.cubins import Usage, usages
from benchmarks.cuda_codegen.generating import Generated, generate
from benchmarks.cuda_codegen.pretending import pretended_h100
from benchmarks.cuda_codegen.tracing import Traced
from taylorseer_fx.compile import compile_variants
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.passes.lower import Target
from taylorseer_fx.passes.pipeline import run_passes
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.traffic import count_traffic
from taylorseer_fx.runtime.boxed import BoxedCallable

GRANULARITIES = ("module", "stack")


@dataclass(frozen=True)
class Code:
    """What was generated for one graph, the fewest bytes that it could move, and what each kernel needs as it may be launched."""

    graph: str
    generated: Generated
    floor: int
    usages: dict[str, list[Usage]]

    @property
    def over_floor(self) -> float:
        return self.generated.num_bytes / self.floor

    @property
    def spilling(self) -> list[str]:
        """Kernels that spill registers in one of their configurations, if only one."""
        return [name for name, ways in self.usages.items() if any(way.spilled for way in ways)]

    @property
    def max_registers(self) -> int:
        return max((way.registers for ways in self.usages.values() for way in ways), default=0)

    @property
    def min_occupancy(self) -> float:
        return min((way.occupancy for ways in self.usages.values() for way in ways), default=1.0)

    def figures(self) -> dict[str, Any]:
        made = self.generated
        return {
            "graph": self.graph,
            "launches": made.num_launches,
            "triton_launches": made.launches.total(),
            "library_calls": dict(sorted(made.library.items())),
            "megabytes": round(made.num_bytes / 1e6, 1),
            "floor_megabytes": round(self.floor / 1e6, 1),
            "over_floor": round(self.over_floor, 4),
            "copies": len(made.copies),
            "kernels": len(made.kernels),
            "spilling": len(self.spilling),
            "max_registers": self.max_registers,
            "min_occupancy": self.min_occupancy,
        }


def plain(traced: Traced) -> Code:
    """What ``torch.compile`` makes of a model without us."""
    graph = deepcopy(traced.gm)
    with pretended_h100():
        return _code("plain", generate(graph, traced.inputs, traced.static_inputs), count_traffic(traced.gm.graph).floor)


def ours(traced: Traced, granularity: str, target: Target, order: int = 2) -> Iterator[Code]:
    """What is made of each step kind, lowered for ``target`` and with its settings."""
    config = BackendConfig(order=order, granularity=granularity)
    result = run_passes(traced.gm, traced.static_inputs, config.storage, config.selection, target=target)
    made: list[Generated] = []

    def compile_graph(gm: fx.GraphModule, inputs: Sequence[Any], static_inputs: tuple[int, ...]) -> BoxedCallable:
        made.append(generate(gm, inputs, static_inputs))
        return lambda _: []

    floors = {kind: count_traffic(result.variants[kind].gm.graph).floor for kind in StepKind}
    with pretended_h100():
        order_of_kinds = list(compile_variants(result, traced.inputs, traced.static_inputs, compile_graph))
        for kind, generated in zip(order_of_kinds, made, strict=True):
            yield _code(f"{kind.value}, {granularity}", generated, floors[kind])


def _code(graph: str, generated: Generated, floor: int) -> Code:
    return Code(graph, generated, floor, {name: usages(name, source) for name, source in generated.kernels.items()})
