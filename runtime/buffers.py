"""The derivative buffers of a stream: sized from the shapes of the call, allocated at its first full step, then kept in place."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import SymInt, Tensor

Argument = Tensor | int


@dataclass(frozen=True)
class SizeSource:
    """The place in a call that holds the value of a size symbol: an integer input, or a dimension of a tensor input."""

    symbol: Any
    position: int
    dim: int | None

    def read(self, args: Sequence[Argument]) -> int:
        arg = args[self.position]
        return int(arg) if self.dim is None or not isinstance(arg, Tensor) else arg.shape[self.dim]


@dataclass(frozen=True)
class BufferTemplate:
    """One buffer; a size is a number, or an expression in the graph's size symbols. Plain data, to be stored with the code."""

    shape: tuple[Any, ...]
    stride: tuple[Any, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, value: Tensor) -> "BufferTemplate":
        """Make the template of ``value``, a fake tensor."""
        return cls(tuple(map(_expression, value.shape)), tuple(map(_expression, value.stride())), value.dtype, value.device)


def _expression(size: int | SymInt) -> Any:
    return size.node.expr if isinstance(size, SymInt) else size


@dataclass(frozen=True)
class BufferLayout:
    """Shapes, strides and dtypes of all buffers of a graph, possibly symbolic in the sizes of its inputs."""

    templates: tuple[BufferTemplate, ...]  # order by order and within it feature by feature
    size_sources: tuple[SizeSource, ...]  # for the symbols in the templates; together they determine every shape

    @classmethod
    def of(cls, templates: Sequence[Tensor], inputs: Sequence[Any]) -> "BufferLayout":
        """Make the layout of ``templates``; ``inputs`` are the fake values of the graph's inputs, which bind the symbols."""
        sizes = [size for template in templates for size in (*template.shape, *template.stride())]
        needed = {symbol for size in sizes if isinstance(size, SymInt) for symbol in size.node.expr.free_symbols}
        sources: dict[Any, SizeSource] = {}
        for position, value in enumerate(inputs):
            dims = list(enumerate(value.shape)) if isinstance(value, Tensor) else [(None, value)]
            for dim, size in dims:
                symbol = size.node.expr if isinstance(size, SymInt) else None
                if symbol in needed and symbol not in sources:
                    sources[symbol] = SizeSource(symbol, position, dim)
        return cls(tuple(map(BufferTemplate.of, templates)), tuple(sources.values()))

    def sizes(self, args: Sequence[Argument]) -> tuple[int, ...]:
        """The sizes that the buffers of a call depend on; empty for a static graph."""
        return tuple(source.read(args) for source in self.size_sources)

    def fits(self, buffers: Sequence[Tensor], args: Sequence[Argument]) -> bool:
        """Are ``buffers``, perhaps allocated for another graph, what ``allocate`` would return for a call with ``args``?"""
        wanted = self._concrete(args)
        return len(buffers) == len(wanted) and all(
            (tuple(buffer.shape), buffer.stride(), buffer.dtype, buffer.device) == entry
            for buffer, entry in zip(buffers, wanted, strict=True)
        )

    def num_bytes(self, args: Sequence[Argument]) -> int:
        """The bytes that ``allocate`` would take for a call with ``args``."""
        return sum(prod(shape) * dtype.itemsize for shape, _, dtype, _ in self._concrete(args))

    def allocate(self, args: Sequence[Argument]) -> list[Tensor]:
        """Allocate buffers for a call with ``args``, zeroed because the first update reads what it is about to replace."""
        with torch.inference_mode(False):  # ordinary tensors, usable in and out of inference mode
            return [
                torch.empty_strided(shape, stride, dtype=dtype, device=device).zero_()
                for shape, stride, dtype, device in self._concrete(args)
            ]

    def _concrete(self, args: Sequence[Argument]) -> list[tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]]:
        values = dict(zip((source.symbol for source in self.size_sources), self.sizes(args), strict=True))

        def evaluate(size: Any) -> int:
            return size if isinstance(size, int) else int(size.xreplace(values))

        return [
            (tuple(map(evaluate, template.shape)), tuple(map(evaluate, template.stride)), template.dtype, template.device)
            for template in self.templates
        ]


def num_bytes(buffers: Sequence[Tensor]) -> int:
    return sum(buffer.numel() * buffer.element_size() for buffer in buffers)
