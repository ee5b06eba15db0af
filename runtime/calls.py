"""The facts about a compiled graph that its calls need: the roles of its inputs, and the inputs that each variant takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch

from taylorseer_fx.passes.call_inputs import CallInputs
from taylorseer_fx.runtime.boxed import BoxedCallable
from taylorseer_fx.runtime.buffers import Argument
from taylorseer_fx.runtime.clock import GraphCall
from taylorseer_fx.runtime.conditioning import read_conditioning, read_samples
from taylorseer_fx.runtime.cuda_graphs import CapturedVariant
from taylorseer_fx.runtime.scope import Reading


@dataclass(frozen=True)
class GraphInfo:
    """A compiled graph as the runtime sees it: its number, and the roles of its inputs."""

    number: int
    inputs: CallInputs

    def call(self, args: Sequence[Argument]) -> GraphCall:
        """The description of a call with ``args`` for the clock."""
        inputs = self.inputs
        return GraphCall(
            site=id(args[inputs.weight]) if inputs.weight is not None else ("graph", self.number),
            number=self.number,
            read_time=(lambda: read_time([args[i] for i in inputs.time])) if inputs.time else None,
            read_conditioning=lambda: read_conditioning(self.number, args, inputs),
            read_samples=lambda: read_samples(args, inputs.samples),
            has_time=inputs.has_time,
        )


@dataclass(frozen=True)
class CompiledVariant:
    """A compiled step kind. ``pick`` selects its inputs from all inputs, coefficients and buffers; ``captured`` runs captures;
    ``groups`` names the process groups that it communicates in.
    """

    run: BoxedCallable
    pick: Callable[[Sequence[Any]], Sequence[Any]]
    captured: CapturedVariant | None = None
    groups: tuple[str, ...] = ()


def picker(positions: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Make a function that returns the items at ``positions``, as a sequence whatever their number."""
    if len(positions) == 1:
        return lambda items: (items[positions[0]],)
    return itemgetter(*positions) if positions else lambda _: ()


_MANY = 256  # elements; from here on the extremes are taken by torch, not by Python


def read_time(tensors: Sequence[Any]) -> Reading:
    """The largest and the smallest value of each candidate for the time, which change with every step, whatever the batch.

    Waits for the device once, however many candidates are there.
    """
    there = [i for i, tensor in enumerate(tensors) if tensor.device.type != "cpu"]
    if len(there) > 1:
        values = torch.cat([tensors[i].reshape(-1).to(torch.float64) for i in there]).cpu()
        read = dict(zip(there, torch.split(values, [tensors[i].numel() for i in there]), strict=True))
        return read_time([read.get(i, tensor) for i, tensor in enumerate(tensors)])
    reading = []
    for tensor in tensors:
        if tensor.numel() > _MANY:
            tensor = torch.stack(torch.aminmax(tensor))
        values = tensor.reshape(-1).tolist()
        reading.append((max(values), min(values)))
    return tuple(reading)
