"""The meeting with Inductor: trace as ``torch.compile`` does, then compile each variant as ``torch.compile`` would.

``compile_fx`` runs Dynamo's graph through AOTAutograd and Inductor's joint-graph passes, then hands the functional ATen graph to
an ``inner_compile``. We take that place, so a full step goes the way of plain ``torch.compile``, and is traced once.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import FrameType
from typing import Any

from functorch.compile import make_boxed_func
from torch import Tensor, fx

from taylorseer_fx.artifacts import VariantCode
from taylorseer_fx.cache import caching, keyed_by_instructions
from taylorseer_fx.capturable import plan_capture
from taylorseer_fx.compat import AsyncCompile, LazyGraphModule, TracingContext, compile_fx, compile_fx_inner, inductor_config
from taylorseer_fx.passes.collectives import find_groups
from taylorseer_fx.passes.lower import AS_IT_IS, TARGETS, Target
from taylorseer_fx.passes.pipeline import PassResult
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.runtime.boxed import BoxedCallable

CompileGraph = Callable[[fx.GraphModule, Sequence[Any], tuple[int, ...]], BoxedCallable]
CompileTraced = Callable[[fx.GraphModule, Sequence[Any], Sequence[int], CompileGraph], BoxedCallable]


def trace_and_compile(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    compile_traced: CompileTraced,
    options: Mapping[str, Any],
    tag: str | None = None,
) -> Callable[..., Any]:
    """Trace a Dynamo graph and let ``compile_traced`` compile it.

    ``compile_traced`` gets the functional ATen graph, its fake inputs, the positions of its weights, and a function
    ``(gm, inputs, static_inputs) -> boxed callable`` that compiles a graph with Inductor. With a ``tag`` it returns a
    ``StepCode``, and is not called where AOTAutograd's cache holds one under that tag.
    """
    with caching(tag) as outside:

        def inner_compile(traced: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> BoxedCallable:
            static_inputs = kwargs.pop("static_input_idxs", ())
            with outside():
                return compile_traced(traced, inputs, static_inputs, partial(_compile_with_inductor, kwargs))

        compile_with: Callable[..., Any] = compile_fx  # its annotations know no inner_compile but Inductor's own
        settings = {**options, "triton.cudagraphs": False}  # set for a whole process, Inductor's own would run within ours
        compiled: Callable[..., Any] = compile_with(gm, example_inputs, inner_compile=inner_compile, config_patches=settings)
    return compiled


def is_called_from_python() -> bool:
    """Is the function being compiled called by a part of the model that Dynamo left to Python (a broken loop, say)?

    Between Dynamo, which is compiling the function, and the place where it was entered lie only frames of torch, unless so.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.endswith("convert_frame.py"):
        frame = frame.f_back
    while frame is not None and frame.f_code.co_name != "compile_wrapper":
        if not frame.f_globals.get("__name__", "").startswith("torch."):
            return True
        frame = frame.f_back
    return False


def target_for(inputs: Iterable[Any]) -> Target:
    """The target that graphs which take ``inputs`` are lowered for."""
    devices = {value.device.type for value in inputs if isinstance(value, Tensor)}
    target = TARGETS.get(devices.pop(), AS_IT_IS) if len(devices) == 1 else AS_IT_IS
    can_call_blocks = not (inductor_config.cpp_wrapper or inductor_config.fx_wrapper)  # these wrappers have no code for it
    return target if can_call_blocks else target.without("fold_repeats")


def compile_variants(
    result: PassResult, inputs: Sequence[Any], static_inputs: Iterable[int], compile_graph: CompileGraph
) -> dict[StepKind, VariantCode]:
    """Compile the graph of each step kind. Coefficients come after the inputs, then the buffers, which are static too."""
    guarded = result.guarded
    coefficients, buffers = (guarded.coefficients, guarded.buffers) if guarded is not None else ([], [])
    every_input = [*inputs, *(node.meta["val"] for node in [*coefficients, *buffers])]
    static = {*static_inputs, *range(len(inputs) + len(coefficients), len(every_input))}
    compiled = {}
    for kind in reversed(StepKind):  # the full graph last: what it reports of its outputs is what AOTAutograd is to see
        if kind in result.lowered:
            variant = result.lowered[kind]
            variant_inputs = [every_input[i] for i in variant.input_positions]
            variant_static = tuple(i for i, position in enumerate(variant.input_positions) if position in static)
            # Inductor works in the graph: read it before.
            plan, groups = plan_capture(variant.gm, variant_inputs, variant_static), find_groups(variant.gm.graph)
            with _settings_of(kind, result.target):
                run = compile_graph(variant.gm, variant_inputs, variant_static)
            compiled[kind] = VariantCode(run, variant.input_positions, plan, groups)
    return compiled


@contextmanager
def kernels_awaited_at_the_end(inputs: Iterable[Any]) -> Iterator[None]:
    """Code compiled for a CPU is loaded before the C++ compiler is done with its kernels, which are waited for at the end: it
    works on while the next graph is lowered. DiT-XL/2, two cores: 33.7 s to the first result before and 30.9 s after.

    Dynamo compiles one thing at a time, whatever the number of threads, so nobody else meets the changed method.
    """
    if not _on_cpu(inputs):
        yield
        return
    wait = AsyncCompile.wait
    pending: list[tuple[AsyncCompile, dict[str, Any]]] = []
    AsyncCompile.wait = lambda self, scope: pending.append((self, scope))  # type: ignore[method-assign]
    try:
        yield
    finally:
        AsyncCompile.wait = wait  # type: ignore[method-assign]
    for kernels, scope in pending:
        wait(kernels, scope)


def _on_cpu(inputs: Iterable[Any]) -> bool:
    return all(value.device.type == "cpu" for value in inputs if isinstance(value, Tensor))


@contextmanager
def _settings_of(kind: StepKind, target: Target) -> Iterator[None]:
    """The target's settings; what the user chose is kept, where it isn't Inductor's own."""
    settings = {name: value for name, value in target.of(kind).settings.items() if _is_default(name)}
    with nullcontext() if kind is StepKind.FULL else _without_output_strides(), inductor_config.patch(settings):
        yield


def _is_default(name: str) -> bool:
    """Is the setting at its default? Judged by value: once patched, as here, Inductor counts it as chosen ever after."""
    return bool(getattr(inductor_config, name) == inductor_config._config[name].default)


def make_eager(gm: fx.GraphModule, _inputs: Sequence[Any], _static_inputs: tuple[int, ...]) -> BoxedCallable:
    """The graph as it is, run operator by operator."""
    LazyGraphModule.force_recompile(gm)
    boxed: BoxedCallable = make_boxed_func(gm.forward)
    return boxed


def _compile_with_inductor(
    kwargs: Mapping[str, Any], gm: fx.GraphModule, inputs: Sequence[Any], static_inputs: tuple[int, ...]
) -> BoxedCallable:
    with keyed_by_instructions(inputs):
        compiled: BoxedCallable = compile_fx_inner(gm, inputs, **kwargs, static_input_idxs=static_inputs)
    return compiled


@contextmanager
def _without_output_strides() -> Iterator[None]:
    """Keep Inductor from reporting output strides, which the tracing context takes once a traced graph."""
    context = TracingContext.try_get()
    if context is None:
        yield
        return
    strides, context.output_strides = context.output_strides, None
    try:
        yield
    finally:
        context.output_strides = strides
