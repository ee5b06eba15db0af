"""Lower the graph of a step kind to the one that the compiler is given, by rewrites that pay on one kind of device only.

    what the passes made -> the target's rewrites of that step kind, in order -> the compiler, with the target's settings

Up to here graphs are the same wherever they run. A rewrite keeps the inputs and what is computed, up to rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import fx

from taylorseer_fx.passes.clean_up import Variant
from taylorseer_fx.passes.emit import copied
from taylorseer_fx.passes.fold_repeats import fold_repeats
from taylorseer_fx.passes.guard_regions import GuardedGraph
from taylorseer_fx.passes.join_slices import join_slices
from taylorseer_fx.passes.patches_as_products import patches_as_products
from taylorseer_fx.passes.runner import Runner
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.store_early import store_early
from taylorseer_fx.passes.sum_few_rows import sum_few_rows
from taylorseer_fx.passes.sum_small_weights import sum_small_weights

Features = Sequence[Sequence[fx.Node]]  # the inputs that are the buffers of each feature


@dataclass(frozen=True)
class Lowering:
    """The rewrites of the graph of one step kind, names of ``REWRITES`` in order, and settings of Inductor that it is compiled
    with where the user chose none.
    """

    rewrites: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A kind of device that graphs are lowered for."""

    name: str
    full: Lowering = Lowering()
    forecast: Lowering = Lowering()

    def of(self, kind: StepKind) -> Lowering:
        return self.full if kind is StepKind.FULL else self.forecast

    def without(self, rewrite: str) -> "Target":
        """This target less one rewrite."""
        full, forecast = (
            replace(lowering, rewrites=tuple(name for name in lowering.rewrites if name != rewrite))
            for lowering in (self.full, self.forecast)
        )
        return replace(self, full=full, forecast=forecast)


AS_IT_IS = Target("as it is")

# Inductor would sum up the polynomials of a whole model in one loop, which reads every buffer at once; a core follows only so
# many streams of memory. DiT-XL/2, 168 buffers, two threads: a forecast step of 49 ms, and of 29 ms in loops of two nodes.
CPU_FUSION_SIZE = 2

# On a GPU one kernel of them all has not the registers: on sm_90, 170 a thread for FLUX.1-dev (one block a multiprocessor) and
# 3.4 KB of stack for DiT-XL/2. Every cut writes and reads the residual stream once more. In loops of 20 nodes, some 40
# polynomials, nothing is spilled, and bytes are within 3 % of the fewest on both; of 16, FLUX's last loop spills.
CUDA_FUSION_SIZE = 20
_SMALL_PRODUCTS = ("patches_as_products", "sum_small_weights")

TARGETS = {
    "cpu": Target("cpu", forecast=Lowering(("sum_few_rows", "fold_repeats"), {"max_fusion_size": CPU_FUSION_SIZE})),
    "cuda": Target(
        "cuda",
        full=Lowering(("join_slices", "store_early", *_SMALL_PRODUCTS)),
        forecast=Lowering(_SMALL_PRODUCTS, {"max_fusion_size": CUDA_FUSION_SIZE, "combo_kernels": True}),
    ),
}

REWRITES: dict[str, Callable[[fx.GraphModule, Features], fx.GraphModule]] = {
    "sum_few_rows": lambda gm, _features: sum_few_rows(gm),
    "fold_repeats": lambda gm, features: fold_repeats(gm, features),
    "join_slices": lambda gm, _features: join_slices(gm),
    "store_early": lambda gm, _features: store_early(gm),
    "patches_as_products": lambda gm, _features: patches_as_products(gm),
    "sum_small_weights": lambda gm, _features: sum_small_weights(gm),
}


def lower(runner: Runner, guarded: GuardedGraph, variants: Mapping[StepKind, Variant], target: Target) -> dict[StepKind, Variant]:
    """The graph of each step kind as it is compiled: the same object where the target rewrites nothing."""
    return {kind: _lowered(runner, guarded, variant, kind, target.of(kind)) for kind, variant in variants.items()}


def _lowered(runner: Runner, guarded: GuardedGraph, variant: Variant, kind: StepKind, lowering: Lowering) -> Variant:
    for name in lowering.rewrites:
        rewrite = partial(REWRITES[name], variant.gm, _buffers_of_features(guarded, variant))
        gm = runner.run(name, rewrite, lambda gm: gm, source=variant.gm, kind=kind, without=partial(copied, variant.gm))
        variant = replace(variant, gm=gm)
    return variant


def _buffers_of_features(guarded: GuardedGraph, variant: Variant) -> Features:
    """The buffers of each feature, which follow the inputs and coefficients: first the youngest of each, then those one older."""
    first_buffer = guarded.num_inputs + len(guarded.coefficients)
    num_features = len(guarded.buffers) // guarded.storage.num_buffers
    features: list[list[fx.Node]] = [[] for _ in range(num_features)]
    for node, position in zip(variant.gm.graph.find_nodes(op="placeholder"), variant.input_positions, strict=True):
        if position >= first_buffer:
            features[(position - first_buffer) % num_features].append(node)
    return features
