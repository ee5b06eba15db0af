"""Have Inductor generate its code for a graph of fake CUDA tensors, and count what it would launch and move."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch._inductor import scheduler
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.dependencies import MemoryDep
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V


@dataclass(frozen=True)
class Generated:
    """Inductor's code for one graph.

    ``kernels``: source of each Triton kernel by name. ``launches``: how often each is launched, in order of the code.
    ``library``: calls of library operators. ``num_bytes``: what all of them read and write, a tensor counted once a kernel.
    ``copies``: kernels that do nothing but write into inputs, such as a feature into its buffer.
    """

    source: str
    kernels: dict[str, str]
    launches: Counter[str]
    library: Counter[str]
    num_bytes: int
    copies: tuple[str, ...]

    @property
    def num_launches(self) -> int:
        return self.launches.total() + self.library.total()


class _Done(BaseException):
    """Leaves Inductor, through whatever handles errors, when the code is generated."""


def generate(gm: fx.GraphModule, inputs: Sequence[Any], static_inputs: Iterable[int]) -> Generated:
    """What Inductor makes of ``gm``, which it works in; to be called in ``pretended_h100``."""
    generated: list[Generated] = []

    def compile_to_module(graph: GraphLowering) -> None:
        code, _ = graph.codegen()
        generated.append(_read(code.value, graph.scheduler.nodes))
        raise _Done

    with mock.patch.object(GraphLowering, "compile_to_module", compile_to_module), torch.no_grad(), suppress(_Done):
        compile_fx_inner(gm, inputs, static_input_idxs=tuple(static_inputs), is_inference=True)
    (only,) = generated
    return only


_DEFINITION = re.compile(r"^(triton_\w+) = async_compile\.triton\('\w+', '''\n(.*?)'''", re.MULTILINE | re.DOTALL)
_LAUNCH = re.compile(r"^\s+(triton_\w+)\.run\(", re.MULTILINE)
_LIBRARY = re.compile(r"\b(?:extern_kernels|torch\.ops\.\w+|aten)\.(\w+)(?:\.\w+)?\(")


def _read(source: str, nodes: Sequence[scheduler.BaseSchedulerNode]) -> Generated:
    body = source[source.index("\n    def call(self, args)") :]
    return Generated(
        source,
        dict(_DEFINITION.findall(source)),
        Counter(_LAUNCH.findall(body)),
        Counter(_LIBRARY.findall(body)),
        sum(_num_bytes(node) for node in nodes),
        tuple(node.get_name() for node in nodes if _is_copy(node)),
    )


def _num_bytes(node: scheduler.BaseSchedulerNode) -> int:
    if isinstance(node, scheduler.ForeachKernelSchedulerNode):  # its parts share a launch, not what they read
        return sum(map(_num_bytes, node.snodes))
    if isinstance(node, scheduler.ExternKernelSchedulerNode):  # the scheduler counts all of a weight where a part is read
        tensors = [*node.node.inputs, node.node]
        return sum(prod(map(int, tensor.get_size())) * tensor.get_dtype().itemsize for tensor in tensors if _has_size(tensor))
    whole = node.get_read_write_buffer_accesses(include_reads=True, include_writes=True)
    return sum(min(count, _num_bytes_of_loops(node, name)) for name, count in whole.items())


def _num_bytes_of_loops(node: scheduler.BaseSchedulerNode, name: str) -> int:
    """What the loops in a kernel read or write of a tensor, by the variables that their indices hold: the scheduler merges loops,
    after which a weight seems to be read once a row. Of a table that rows are gathered from, as much as there are results.
    """
    elements = {}
    for part in _parts(node):
        for dep in part.node.get_read_writes().reads_and_writes():
            if dep.name == name:
                gathers = isinstance(dep, MemoryDep) and dep.is_indirect()
                elements[dep] = prod(map(int, part.node.get_size())) if gathers else int(dep.get_numel())
    return sum(elements.values()) * V.graph.get_dtype(name).itemsize


def _has_size(value: Any) -> bool:
    return not isinstance(value, (list, tuple)) and value.maybe_get_size() is not None


def _is_copy(node: scheduler.BaseSchedulerNode) -> bool:
    """Does a kernel store features and do nothing else?"""
    parts = list(_parts(node))
    return bool(parts) and all(output.get_mutations() for part in parts for output in part.get_outputs())


def _parts(node: scheduler.BaseSchedulerNode) -> Iterator[scheduler.SchedulerNode]:
    """The loops in a kernel; none of a library's call."""
    for part in node.get_nodes():
        if isinstance(part, scheduler.SchedulerNode):
            yield part
