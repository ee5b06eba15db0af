"""The results of compiling a graph: code, and the facts about the graph that are kept without it."""

from dataclasses import dataclass

import torch

from taylorseer_fx.numbers import GraphNumbers
from taylorseer_fx.passes.call_inputs import CallInputs
from taylorseer_fx.passes.regions import RegionSet
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.remade import Passes
from taylorseer_fx.runtime.boxed import BoxedCallable
from taylorseer_fx.runtime.buffers import BufferLayout
from taylorseer_fx.runtime.cuda_graphs import CapturePlan


@dataclass(frozen=True)
class VariantCode:
    """The code of a step kind.

    ``input_positions``: which of all inputs, coefficients and buffers it takes, in that order; ``capture`` counts among these.
    ``groups``: the names of the process groups that it communicates in.
    """

    run: BoxedCallable
    input_positions: tuple[int, ...]
    capture: CapturePlan
    groups: tuple[str, ...]


@dataclass(frozen=True)
class CompiledSteps:
    """The results for one graph, as far as a process that loads it needs them.

    ``found`` holds no regions, whose nodes are in the graph, only what was rejected; ``over_budget`` is the warning on the memory
    budget, if any. Without a ``layout`` nothing is forecast and FULL, the graph as it was, is all there is. The graphs that the
    passes made are not kept, but their ``numbers``, and ``passes`` to make them again.
    """

    found: RegionSet
    over_budget: str
    inputs: CallInputs
    variants: dict[StepKind, VariantCode]
    layout: BufferLayout | None
    coefficient_dtype: torch.dtype | None
    passes: Passes
    numbers: GraphNumbers | None
