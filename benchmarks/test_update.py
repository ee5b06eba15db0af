"""What a full step adds to plain torch.compile: bringing the buffers up to date, as snapshots and as differences.

Snapshots write one buffer a feature and read none of them. Differences, which eight-bit buffers need, read and write all but one.
Both over the 56 features of DiT-XL/2 at guidance batch 2, order 2, float32, compiled by Inductor, in turns.
"""

import statistics
from collections.abc import Callable, Sequence

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, fx
from torch._inductor.compile_fx import compile_fx_inner
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.timing import interleaved_steps
from taylorseer_fx.passes.emit import emitter, placeholder
from taylorseer_fx.passes.taylor import emit_differences, emit_snapshots

NUM_FEATURES, SHAPE, ORDER, ROUNDS = 56, (2, 256, 1152), 2, 20


def test_update(benchmark: BenchmarkFixture) -> None:
    """Milliseconds of the update alone, in either form, are in ``extra_info``."""
    features = [torch.randn(SHAPE) for _ in range(NUM_FEATURES)]
    buffers = [torch.zeros(SHAPE) for _ in range(NUM_FEATURES * (ORDER + 1))]
    gaps = torch.full((ORDER,), 0.2)
    updates = {form: _compiled(form) for form in ("snapshots", "differences")}
    runs = {name: lambda _step, run=run: run([*features, *buffers, gaps]) for name, run in updates.items()}
    interleaved_steps(runs, 2)
    seconds = benchmark.pedantic(lambda: interleaved_steps(runs, ROUNDS), rounds=1)
    benchmark.extra_info.update({f"{name}_ms": statistics.median(taken) * 1e3 for name, taken in seconds.items()})


def _compiled(form: str) -> Callable[[list[Tensor]], object]:
    """Features, buffers (a feature's side by side) and reciprocal gaps in; nothing out, the buffers are written in place."""
    graph, mode = fx.Graph(), FakeTensorMode()
    with mode:
        features = [placeholder(graph, f"feature{f}", torch.empty(SHAPE)) for f in range(NUM_FEATURES)]
        buffers = [
            [placeholder(graph, f"feature{f}_b{i}", torch.empty(SHAPE)) for i in range(ORDER + 1)] for f in range(NUM_FEATURES)
        ]
        gaps = placeholder(graph, "reciprocal_gaps", torch.empty(ORDER))
    emit = emitter(graph, mode)
    for feature, stored in zip(features, buffers, strict=True):
        for target, new in _writes(form, emit, feature, stored, gaps):
            emit(torch.ops.aten.copy_.default, target, new)
    graph.output(())
    inputs = [node.meta["val"] for node in graph.find_nodes(op="placeholder")]
    with torch._guards.tracing(torch._guards.TracingContext(mode)):
        run: Callable[[list[Tensor]], object] = compile_fx_inner(
            fx.GraphModule({}, graph), inputs, static_input_idxs=range(len(inputs))
        )
    return run


def _writes(
    form: str, emit: Callable[..., fx.Node], feature: fx.Node, stored: Sequence[fx.Node], gaps: fx.Node
) -> list[tuple[fx.Node, fx.Node]]:
    if form == "snapshots":
        return [(stored[-1], emit_snapshots(emit, feature, stored)[0])]
    return list(zip(stored, emit_differences(emit, feature, stored, gaps), strict=True))
