"""The passes in order, from a traced graph to one graph per step kind, and on to the graphs that are compiled."""

import gc
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from torch import fx

from taylorseer_fx.passes.buffer_bytes import num_buffer_bytes
from taylorseer_fx.passes.call_inputs import CallInputs, sort_inputs
from taylorseer_fx.passes.canonicalize import canonicalize
from taylorseer_fx.passes.clean_up import Variant, clean_up
from taylorseer_fx.passes.emit import copied
from taylorseer_fx.passes.find_cut_branches import find_arriving_branches, find_leaving_branches
from taylorseer_fx.passes.find_hidden_adds import find_hidden_adds
from taylorseer_fx.passes.find_regions import find_regions
from taylorseer_fx.passes.find_stack import find_stack
from taylorseer_fx.passes.find_stored import find_stored
from taylorseer_fx.passes.guard_regions import GuardedGraph, guard_regions
from taylorseer_fx.passes.lower import AS_IT_IS, Target, lower
from taylorseer_fx.passes.narrow import narrow
from taylorseer_fx.passes.near_misses import with_near_misses
from taylorseer_fx.passes.regions import RegionSet, Rejected
from taylorseer_fx.passes.runner import Notify, Runner, StageRecord, Watch
from taylorseer_fx.passes.specialize import specialize
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Selection, Storage

MODULES = Selection("module")


@dataclass(frozen=True)
class PassResult:
    """Everything the passes made of one graph.

    ``module_bytes``: the bytes that the buffers of a stream take, or would, with a feature per module; None where these were not
    looked for. ``variants``: the graph of each step kind, none without regions. ``lowered``: the graphs that are compiled for
    ``target``; without regions the traced one, under FULL.
    """

    canonical: fx.GraphModule
    found: RegionSet
    granularity: str
    module_bytes: int | None
    inputs: CallInputs
    guarded: GuardedGraph | None
    variants: dict[StepKind, Variant]
    target: Target
    lowered: dict[StepKind, Variant]
    stages: tuple[StageRecord, ...]

    @property
    def is_complete(self) -> bool:
        """Did no pass fail that was then left out?"""
        return not any(stage.has_failed for stage in self.stages)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Switch garbage collection off: graphs are live while they are built, and looking for garbage among all that a process
    holds took half of the time (5.2 % of compiling FLUX.1-dev's graph with it, 2.5 % without).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@no_garbage_collection()
def run_passes(
    traced: fx.GraphModule,
    static_inputs: Iterable[int],
    storage: Storage,
    selection: Selection = MODULES,
    graph_break: str | None = None,
    is_part: bool = False,
    registered: Collection[str] | None = None,
    target: Target = AS_IT_IS,
    disabled: Collection[str] = (),
    notify: Notify | None = None,
    watch: Watch | None = None,
) -> PassResult:
    """Run every pass.

    Args:
        traced: functional ATen graph with ``meta["val"]`` on every node; left as it is.
        static_inputs: positions of its weight inputs.
        storage: the buffers of each feature.
        selection: the granularity of features.
        graph_break: where the model breaks off at the end of this graph, if it does.
        is_part: the graph is a part of a model that does not compile as a whole.
        registered: names of the registered residual operators to write out; None: all there are.
        target: what the graphs are lowered for.
        disabled: names of the optional passes to do without.
        notify: called for a pass that failed and was left out; None: no pass may fail.
        watch: called with what every stage made.

    Raises:
        PassError: a pass failed that cannot be left out.
    """
    runner = Runner(traced, disabled, notify, watch)
    static_inputs = tuple(static_inputs)
    runner.run("trace", lambda: traced, lambda gm: gm)
    canonical = runner.run("canonicalize", lambda: canonicalize(traced, registered), lambda gm: gm)
    placeholders = canonical.graph.find_nodes(op="placeholder")
    parameters = [placeholders[i] for i in static_inputs]
    granularity, module_bytes, found = _select(runner, canonical, parameters, storage, selection)
    is_part_of_model = is_part or graph_break is not None
    find_cut = partial(_cut_branches, canonical.graph, parameters, found, graph_break, is_part)
    cut = runner.run("find_cut_branches", find_cut, lambda _: canonical, without=lambda: ()) if is_part_of_model else ()
    hidden = runner.checked("find_hidden_adds", lambda: find_hidden_adds(canonical.graph, parameters, found, is_part_of_model))
    found = replace(found, rejected=(*found.rejected, *cut, *hidden))
    if not found.regions:
        found = with_near_misses(found, canonical.graph, parameters)
    inputs = runner.checked("sort_inputs", lambda: sort_inputs(canonical.graph, static_inputs, found, is_part_of_model))
    guarded, variants = None, dict[StepKind, Variant]()
    if found.regions:
        guarded = runner.run("guard_regions", lambda: guard_regions(canonical, found, storage), lambda made: made.gm)
        variants = {kind: _variant(runner, guarded, kind) for kind in StepKind}
        lowered = lower(runner, guarded, variants, target)
    else:
        lowered = {StepKind.FULL: Variant(copied(traced), tuple(range(len(placeholders))))}
    return PassResult(
        canonical=canonical,
        found=found,
        granularity=granularity,
        module_bytes=module_bytes,
        inputs=inputs,
        guarded=guarded,
        variants=variants,
        target=target,
        lowered=lowered,
        stages=tuple(runner.records),
    )


def _select(
    runner: Runner, canonical: fx.GraphModule, parameters: Sequence[fx.Node], storage: Storage, selection: Selection
) -> tuple[str, int | None, RegionSet]:
    """The granularity chosen, the bytes of the buffers that modules need, if they were looked for, and the regions."""
    graph = canonical.graph

    def find(name: str, finder: Callable[[], RegionSet]) -> RegionSet:
        found = runner.run(name, finder, lambda _: canonical)
        return runner.run("find_stored", lambda: find_stored(graph, found), lambda _: canonical, without=lambda: found)

    needed = None
    if selection.granularity == "module":
        modules = find("find_regions", lambda: find_regions(graph, parameters))
        needed = sum(num_buffer_bytes(feature, storage) for feature in modules.features)
        if selection.budget is None or needed <= selection.budget:
            return "module", needed, modules
    return "stack", needed, find("find_stack", lambda: find_stack(graph, parameters))


def _cut_branches(
    graph: fx.Graph, parameters: Sequence[fx.Node], found: RegionSet, graph_break: str | None, is_part: bool
) -> tuple[Rejected, ...]:
    leaving = find_leaving_branches(graph, parameters, found, graph_break) if graph_break is not None else ()
    arriving = find_arriving_branches(graph, parameters, found) if is_part else ()
    return (*leaving, *arriving)


def _variant(runner: Runner, guarded: GuardedGraph, kind: StepKind) -> Variant:
    step = runner.run("specialize", lambda: specialize(guarded, kind), lambda gm: gm, source=guarded.gm, kind=kind)
    if kind is StepKind.FORECAST:
        wide = step
        step = runner.run("narrow", lambda: narrow(wide), lambda gm: gm, kind=kind, without=lambda: wide)
    return runner.run("clean_up", lambda: clean_up(step), lambda variant: variant.gm, kind=kind)
