"""A capture, and the key that it is looked up by: the form of every input, and the addresses of the static ones."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from taylorseer_fx.compat import same_addresses
from taylorseer_fx.runtime.graph_api import Graph
from taylorseer_fx.runtime.staging import Outputs, Staging

ShapeKey = tuple[Any, ...]


def form(value: Any) -> Any:
    """The part of an input that a capture fixes: an integer's value; a tensor's shape, strides and dtype."""
    return (value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else value


@dataclass
class Capture:
    """One capture of a variant, over the static inputs that it was called with and over staging memory.

    ``addresses`` has one entry per input, None for those that are not static; ``forms`` has one per static input.
    """

    graph: Graph
    outputs: Outputs
    staging: Staging
    static: list[int]
    addresses: list[int | None]
    forms: list[Any]
    staging_addresses: list[int]
    num_replays: int = 0
    last_used: int = 0

    @classmethod
    def of(cls, graph: Graph, values: Any, staging: Staging, static: list[int], inputs: list[Any]) -> "Capture":
        addresses: list[int | None] = [None] * len(inputs)
        for i in static:
            addresses[i] = inputs[i].data_ptr()
        return cls(graph, Outputs(values), staging, static, addresses, [form(inputs[i]) for i in static], staging.addresses)

    def is_for(self, inputs: list[Any]) -> bool:
        return same_addresses(inputs, self.addresses, self.static)

    def moved(self, inputs: list[Any]) -> list[int]:
        """The positions of the static inputs that have moved."""
        return [i for i in self.static if inputs[i].data_ptr() != self.addresses[i]]

    def check(self, inputs: list[Any]) -> None:
        """Raise AssertionError unless all is as it was captured: for debugging, since the caller has looked already."""
        assert not self.moved(inputs), f"static inputs {self.moved(inputs)} are not where they were captured"
        changed = [i for i, was in zip(self.static, self.forms, strict=True) if form(inputs[i]) != was]
        assert not changed, f"static inputs {changed} have other shapes, strides or dtypes than were captured"
        assert self.staging.addresses == self.staging_addresses, "the staging memory moved since the capture"


@dataclass
class ShapeEntry:
    """The captures of a variant for one set of input forms; ``obstacle``: the reason why it is no longer captured."""

    threads: set[int] = field(default_factory=set)  # that ran it as compiled
    staging: Staging | None = None
    captures: dict[int, Capture] = field(default_factory=dict)  # by the address of the last static input
    obstacle: str = ""
    num_wasted: int = 0
