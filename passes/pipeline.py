"""The passes in order, from a traced graph to one graph a step kind.

Each stage is timed, logged (``TORCH_LOGS="+taylorseer_fx"`` prints the op count before and after, and the graph), and recorded
through ``trace_structured`` (``TORCH_TRACE=dir``, read with tlparse). A stage that fails says which ones ran before it. One that
only makes a step leaner (``OPTIONAL``) is left out where there is somebody to tell.
"""

import gc
import logging
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from torch import fx
from torch._logging._internal import trace_structured

from taylorseer_fx.errors import PassError
from taylorseer_fx.passes.call_inputs import CallInputs, sort_inputs
from taylorseer_fx.passes.canonicalize import canonicalize
from taylorseer_fx.passes.clean_up import Variant, clean_up
from taylorseer_fx.passes.emit import copied
from taylorseer_fx.passes.failures import failure_report
from taylorseer_fx.passes.find_cut_branches import find_arriving_branches, find_leaving_branches
from taylorseer_fx.passes.find_hidden_adds import find_hidden_adds
from taylorseer_fx.passes.find_kept import find_kept, num_buffer_bytes
from taylorseer_fx.passes.find_regions import find_regions
from taylorseer_fx.passes.find_stack import find_stack
from taylorseer_fx.passes.fold_repeats import fold_repeats
from taylorseer_fx.passes.guard_regions import GuardedGraph, guard_regions
from taylorseer_fx.passes.narrow import narrow
from taylorseer_fx.passes.near_misses import with_near_misses
from taylorseer_fx.passes.regions import RegionSet, Rejected
from taylorseer_fx.passes.specialize import StepKind, specialize
from taylorseer_fx.passes.sum_few_rows import sum_few_rows
from taylorseer_fx.passes.taylor import Storage

log = logging.getLogger(__name__)
T = TypeVar("T")
Notify = Callable[[str, str], None]  # of a topic and what to say of it, once


@dataclass(frozen=True)
class StageRecord:
    """One line of the table of passes in ``explain()``; ``left_out`` is the error of one that was gone on without."""

    name: str
    num_ops: int
    duration_ms: float
    left_out: str = ""


@dataclass(frozen=True)
class Selection:
    """What is taken for a feature: every attention and MLP ("module"), or a whole stream ("stack"). With a ``budget``, in bytes,
    modules where their buffers fit in it.
    """

    granularity: str = "module"
    budget: int | None = None


@dataclass(frozen=True)
class PassResult:
    """Everything the passes made of one graph. ``module_bytes``: what the buffers of a stream take, or would, with a feature for
    every module; None where these were not looked for. ``summed`` and ``folded``: the forecast step as it is compiled, the latter
    with blocks that are the same as calls of one where there are such; None without regions.
    """

    canonical: fx.GraphModule
    found: RegionSet
    granularity: str
    module_bytes: int | None
    inputs: CallInputs
    guarded: GuardedGraph | None
    variants: dict[StepKind, Variant]
    summed: fx.GraphModule | None
    folded: fx.GraphModule | None
    stages: tuple[StageRecord, ...]

    @property
    def is_complete(self) -> bool:
        """Was no pass left out?"""
        return not any(stage.left_out for stage in self.stages)


# The stages that a graph is right without, and what is worse then.
OPTIONAL = {
    "find_kept": "all of every feature is kept, which takes more memory",
    "find_cut_branches": "branches that a graph break cuts off are not listed",
    "narrow_forecast": "a forecast step computes more than is read of it",
    "sum_few_rows_forecast": "a forecast step on a CPU reads the weights of its gates more slowly",
    "fold_repeats_forecast": "every block of a forecast step is compiled by itself, which takes longer",
}


@dataclass
class _Stages:
    notify: Notify | None
    records: list[StageRecord] = field(default_factory=list)

    def run(
        self, name: str, stage: Callable[[], T], graph_of: Callable[[T], fx.GraphModule], without: Callable[[], T] | None = None
    ) -> T:
        """What ``stage`` makes; ``without``: what to go on with if it is an optional one and fails."""
        started = time.perf_counter()
        left_out = ""
        try:
            result = self.checked(name, stage)
        except PassError as failure:
            if name not in OPTIONAL or without is None or self.notify is None:
                raise
            result, left_out = without(), self._leave_out(name, failure.__cause__, self.notify)
        gm = graph_of(result)
        duration_ms = (time.perf_counter() - started) * 1e3
        self.records.append(StageRecord(name, count_ops(gm.graph), duration_ms, left_out))
        self._record(gm)
        return result

    def checked(self, name: str, stage: Callable[[], T]) -> T:
        """What ``stage`` makes, without a record of it."""
        try:
            return stage()
        except Exception as error:
            before = ", ".join(record.name for record in self.records) or "none"
            failure = PassError(f"taylorseer_fx pass {name!r} failed: {error} (passes that ran before it: {before})")
            failure.add_note("".join(traceback.format_exception(error)))  # Dynamo takes the cause off
            raise failure from error

    @staticmethod
    def _leave_out(name: str, error: BaseException | None, notify: Notify) -> str:
        assert isinstance(error, Exception)
        log.debug("%s failed and is left out", name, exc_info=error)
        notify(f"left out {name}", failure_report(name, error, OPTIONAL[name]))
        return f"{type(error).__name__}: {error}"

    def _record(self, gm: fx.GraphModule) -> None:
        record = self.records[-1]
        log.debug("%d %s: %d ops, %.1f ms", len(self.records), record.name, record.num_ops, record.duration_ms)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s", gm.print_readable(print_output=False))
        trace_structured(
            "artifact",
            metadata_fn=lambda: {"name": f"taylorseer_fx_{record.name}", "encoding": "string"},
            payload_fn=lambda: gm.print_readable(print_output=False),
        )


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Graphs are live while they are built, and looking for garbage among all that a process holds took half of the time (5.2 %
    of compiling FLUX.1-dev's graph with it, 2.5 % without).
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
    selection: Selection = Selection(),
    graph_break: str | None = None,
    is_part: bool = False,
    registered: Collection[str] | None = None,
    notify: Notify | None = None,
) -> PassResult:
    """Run every pass.

    Args:
        traced: functional ATen graph with ``meta["val"]`` on every node; left as it is.
        static_inputs: positions of its weight inputs.
        storage: what is kept of each feature.
        selection: what is taken for a feature.
        graph_break: where the model breaks off at the end of this graph, if it does.
        is_part: the graph is a part of a model that does not compile as a whole.
        registered: names of the registered residual operators to write out; None: all there are.
        notify: is told of a pass that failed and was left out; None: then no pass may fail.

    Raises:
        PassError: a pass failed that cannot be left out.
    """
    stages = _Stages(notify)
    static_inputs = tuple(static_inputs)
    stages.run("trace", lambda: traced, lambda gm: gm)
    canonical = stages.run("canonicalize", lambda: canonicalize(traced, registered), lambda gm: gm)
    placeholders = canonical.graph.find_nodes(op="placeholder")
    parameters = [placeholders[i] for i in static_inputs]
    granularity, module_bytes, found = _select(stages, canonical, parameters, storage, selection)
    is_part_of_model = is_part or graph_break is not None
    find_cut = partial(_cut_branches, canonical.graph, parameters, found, graph_break, is_part)
    cut = stages.run("find_cut_branches", find_cut, lambda _: canonical, without=lambda: ()) if is_part_of_model else ()
    hidden = stages.checked("find_hidden_adds", lambda: find_hidden_adds(canonical.graph, parameters, found, is_part_of_model))
    found = replace(found, rejected=(*found.rejected, *cut, *hidden))
    if not found.regions:
        found = with_near_misses(found, canonical.graph, parameters)
    inputs = stages.checked("sort_inputs", lambda: sort_inputs(canonical.graph, static_inputs, found, is_part_of_model))
    about = (canonical, found, granularity, module_bytes, inputs)
    if not found.regions:
        return PassResult(*about, guarded=None, variants={}, summed=None, folded=None, stages=tuple(stages.records))
    guarded = stages.run("guard_regions", lambda: guard_regions(canonical, found, storage), lambda result: result.gm)
    variants = {kind: _variant(stages, guarded, kind) for kind in StepKind}
    forecast = variants[StepKind.FORECAST]
    summed = stages.run("sum_few_rows_forecast", lambda: sum_few_rows(forecast.gm), lambda gm: gm, lambda: copied(forecast.gm))
    features = _buffers_of_features(guarded, replace(forecast, gm=summed), len(placeholders))
    folded = stages.run("fold_repeats_forecast", lambda: fold_repeats(summed, features), lambda gm: gm, lambda: summed)
    return PassResult(*about, guarded, variants, summed, folded, tuple(stages.records))


def _select(
    stages: _Stages, canonical: fx.GraphModule, parameters: Sequence[fx.Node], storage: Storage, selection: Selection
) -> tuple[str, int | None, RegionSet]:
    """The granularity chosen, the bytes of the buffers that modules need, if they were looked for, and the regions."""
    graph = canonical.graph

    def find(name: str, finder: Callable[[], RegionSet]) -> RegionSet:
        found = stages.run(name, finder, lambda _: canonical)
        return stages.run("find_kept", lambda: find_kept(graph, found), lambda _: canonical, without=lambda: found)

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


def _variant(stages: _Stages, guarded: GuardedGraph, kind: StepKind) -> Variant:
    special = stages.run(f"specialize_{kind.value}", lambda: specialize(guarded, kind), lambda gm: gm)
    if kind is StepKind.FORECAST:
        wide = special
        special = stages.run("narrow_forecast", lambda: narrow(wide), lambda gm: gm, without=lambda: wide)
    return stages.run(f"clean_up_{kind.value}", lambda: clean_up(special), lambda variant: variant.gm)


def _buffers_of_features(guarded: GuardedGraph, forecast: Variant, num_inputs: int) -> list[list[fx.Node]]:
    """Of each feature, the inputs of ``forecast`` that are its buffers. They come after the model's inputs and the coefficients:
    first the youngest of every feature, then those one older, and so on.
    """
    first_buffer, num_features = num_inputs + len(guarded.coefficients), len(guarded.buffers) // (guarded.storage.order + 1)
    features: list[list[fx.Node]] = [[] for _ in range(num_features)]
    for node, position in zip(forecast.gm.graph.find_nodes(op="placeholder"), forecast.kept, strict=True):
        if position >= first_buffer:
            features[(position - first_buffer) % num_features].append(node)
    return features


def count_ops(graph: fx.Graph) -> int:
    return sum(node.op == "call_function" for node in graph.nodes)
