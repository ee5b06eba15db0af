"""The backend: the callable that ``torch.compile`` gives each graph to, and the object that users hold."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from taylorseer_fx.artifacts import CompiledSteps, VariantCode
from taylorseer_fx.attach import Attachments
from taylorseer_fx.cache import StepCode, arriving, cache_tag
from taylorseer_fx.compat import inductor_compile
from taylorseer_fx.compile import (
    is_called_from_python,
    trace_and_compile,
)
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.errors import ConfigError, NothingCompiledError, TaylorSeerWarning
from taylorseer_fx.explain import CompiledGraph, Report, describe_model
from taylorseer_fx.graph_breaks import graph_break_after
from taylorseer_fx.hooked_gathers import bytes_gathered_by_hooks
from taylorseer_fx.messages import (
    GRADIENTS,
    broken,
    gathered_by_hooks,
    mode_in_options,
    nothing_compiled,
    nothing_to_forecast,
    unknown_stream,
    where_to_put,
)
from taylorseer_fx.numbers import GraphNumbers
from taylorseer_fx.passes.regions import MEANT, RegionSet
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.plan_file import PlanFile
from taylorseer_fx.planned import PlannedRuns
from taylorseer_fx.recompile_limit import text_at_the_limit
from taylorseer_fx.repro import save
from taylorseer_fx.runtime.boxed import BoxedCallable
from taylorseer_fx.runtime.calls import CompiledVariant, GraphInfo, picker
from taylorseer_fx.runtime.dispatch import Dispatcher, Observer
from taylorseer_fx.runtime.graph_api import CudaGraphApi, GraphApi
from taylorseer_fx.runtime.scope import Scope
from taylorseer_fx.runtime.state import Runtime
from taylorseer_fx.stream_stats import StreamStats, list_streams
from taylorseer_fx.traced import GraphOrigin, compile_steps


@dataclass(frozen=True)
class Stats:
    """Counters since the backend was made; ``buffer_bytes`` is what is allocated now, ``peak_buffer_bytes`` the most so far.

    ``held``: the streams that hold buffers now; ``streams`` counts them, and each half of a guidance that no name tells apart.
    """

    full_calls: int
    forecast_calls: int
    unforecast_calls: int
    streams: int
    graphs: int
    compiles: int
    captures: int
    replays: int
    buffer_bytes: int
    peak_buffer_bytes: int
    evicted_streams: int
    expired_streams: int
    held: tuple[StreamStats, ...]


class TaylorSeerBackend:
    """A ``torch.compile`` backend; made by ``taylorseer_backend``. One backend serves one model."""

    __name__ = "taylorseer"

    def __init__(self, config: BackendConfig, graph_api: GraphApi | None = None) -> None:
        self.config = config
        self._said: set[str] = set()
        self._planned = PlannedRuns(config, self._notify)
        self._runtime = Runtime(
            self._planned.schedule(),
            config.storage,
            self._notify,
            config.forecaster,
            on_run=self._planned.check_run,
            limits=config.limits,
        )
        if config.cuda_graphs is not False:
            self._runtime.capture_with(graph_api if graph_api is not None else CudaGraphApi())
        self._attachments = Attachments(self._runtime)
        self._compiled_graphs: list[CompiledGraph] = []
        self._num_plain = 0  # graphs left alone for their gradients

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        """Compile one Dynamo graph, for ``torch.compile``; not meant to be called by users."""
        if kwargs:
            raise ConfigError("torch.compile", "called without mode and options", kwargs, where_to_put(kwargs))
        if at_limit := text_at_the_limit():
            self._notify("recompile limit", at_limit)
        if gathered := bytes_gathered_by_hooks():
            self._notify("fully_shard", gathered_by_hooks(gathered))
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in example_inputs):
            self._num_plain += 1
            self._notify("gradients", GRADIENTS)
            return self._compile_plain(gm, example_inputs)
        origin = GraphOrigin(graph_break_after(gm), is_part=bool(self._compiled_graphs) or is_called_from_python())
        tag = cache_tag(gm, self.config, origin.graph_break, origin.is_part)
        compile_traced = partial(self._compile_traced, origin, tag)
        with arriving(tag) as codes:
            compiled = trace_and_compile(gm, example_inputs, compile_traced, self.config.compiler_options, tag)
        for code in codes[-1:]:
            code.run = self._install(origin, code.steps)
        return compiled

    def __reduce__(self) -> tuple[type["TaylorSeerBackend"], tuple[BackendConfig]]:
        """Let ``copy``, ``pickle`` and ``torch.save`` keep the settings. A copy, also of a compiled model, begins with no
        streams, graphs or attachments, and warns again.
        """
        return type(self), (self.config,)

    def reset(self) -> None:
        """Forget all streams and free their derivative buffers; the next call begins a new generation.

        A new generation is recognised by its timestep going back, so this is needed only after one that was broken off before
        the timestep that the next one begins at. Compiled graphs stay; captured CUDA graphs and their memory go.
        """
        self._runtime.reset()

    def stream(self, name: str, *, step: int | None = None) -> AbstractContextManager[None]:
        """Run the calls inside as the stream ``name``, with derivatives of its own.

        Args:
            name: any string: "cond" and "uncond", or a request's identity.
            step: index of the denoising step, from 0. Given it, no timestep is read (on a GPU, reading one waits for the
                device). It must be the one after the last, or 0, which begins a new generation; the same step again with other
                conditioning is a further stream of that name, as under serial guidance. A stream that holds nothing yet may
                begin at any step, in full. None: the step follows from the timesteps.

        Raises:
            ConfigError: ``name`` is no string, or ``step`` no index.
            StreamLimitError: on entering, or in a call inside: ``max_streams`` or ``total_memory_budget`` leave no room.
            StreamStepError: in a call inside: ``step`` does not follow. Nothing was executed, and the stream is as before.
        """
        if not isinstance(name, str):
            raise ConfigError("name", "a string", name)
        if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
            raise ConfigError("step", "None or an int of at least 0", step)
        return self._runtime.scopes.entered(Scope(name, step, told_by=name if step is not None else None))

    def release(self, name: str, *, missing_ok: bool = False) -> None:
        """Give back what the stream ``name`` holds, with all that is nested in it: buffers and CUDA captures.

        Call it when a request is done. Should the name be used again, it begins anew.

        Args:
            name: as given to ``stream``.
            missing_ok: do nothing where there is no such stream; it may have been evicted, or have expired.

        Raises:
            ConfigError: ``name`` is no string, there is no such stream, or one of its blocks is open, here or in another thread.
        """
        if not isinstance(name, str):
            raise ConfigError("name", "a string", name)
        if not self._runtime.release(name) and not missing_ok:
            raise ConfigError("name", "that of a stream that is held", name, unknown_stream(self.stats().held))

    def attach(self, pipe_or_model: Any) -> None:
        """Read streams, generations and steps from a diffusers pipeline, or from a model's ``cache_context``.

        A run of the pipeline is then a generation, however it ends; calls in ``model.cache_context("cond")`` are a stream of
        their own, and in a modular pipeline so are those for each batch that its guider prepares; the step follows from the
        guider, or from the scheduler's step index, without reading from the device, once a whole run has shown that it moves as
        the timesteps do; buffers are freed when the run is over, or kept for the next where steps are CUDA graphs, which need
        them where they are. Before or after ``torch.compile``, for any number of pipelines. ``detach()`` undoes it.

        Raises:
            ConfigError: ``pipe_or_model`` is neither.
        """
        self._attachments.attach(pipe_or_model)

    def detach(self) -> None:
        """Undo every ``attach``."""
        self._attachments.detach()

    def explain(self, graph: int | None = None) -> Report:
        """Report what was found and done in a compiled graph; ``print`` it.

        Args:
            graph: its number, from 0 in the order of compilation, or from the end if negative; None: the newest with regions.

        Raises:
            NothingCompiledError: nothing was compiled yet, or everything with gradients enabled, and so plainly.
            ConfigError: there is no graph of that number.
        """
        number = self._number(graph)
        graph_of_place = {role: state.layout[0] for (_, role), state in self._runtime.states.items()}
        layers = Counter(graph_of_place.values())
        runtime = self._runtime
        return describe_model(
            self._compiled_graphs,
            number,
            self.config,
            layers,
            self._describe_captures(),
            runtime.clock.time_taken(),
            runtime.last_schedule,
        )

    def save_repro(self, folder: str | Path, graph: int | None = None) -> None:
        """Save a compiled graph for a bug report: the traced graph, without weights, and the settings.

        ``python -m taylorseer_fx.replay FOLDER`` runs the passes on it again, without the model.

        Args:
            folder: is created if necessary.
            graph: as for ``explain``.

        Raises:
            NothingCompiledError, ConfigError: as for ``explain``.
            OSError: the folder cannot be written.
        """
        passes = self._compiled_graphs[self._number(graph)].passes
        if not save(Path(folder), passes.graph(), passes.arguments):
            text = f"the graph cannot be stored, so {folder} holds it as text only, and there is nothing to replay."
            self._notify(f"save_repro {folder}", text)

    def _number(self, graph: int | None) -> int:
        """The number of the graph that a caller asks for, counted from 0 or from the end."""
        if not self._compiled_graphs:
            raise NothingCompiledError(nothing_compiled(self._num_plain))
        count = len(self._compiled_graphs)
        if graph is not None and (isinstance(graph, bool) or not isinstance(graph, int) or not -count <= graph < count):
            raise ConfigError("graph", f"None or an int of {-count} to {count - 1}", graph, f"There are {count} graphs.")
        if graph is None:
            return max((i for i, entry in enumerate(self._compiled_graphs) if entry.numbers.regions), default=-1)
        return graph

    def _describe_captures(self) -> tuple[str, ...]:
        cuda_graphs = self._runtime.cuda_graphs
        if cuda_graphs is None:
            return ("off: cuda_graphs=False",)
        return cuda_graphs.describe() or (f"off: the model is on no {cuda_graphs.api.device_type.upper()} device",)

    def numbers(self, granularity: str) -> list[GraphNumbers]:
        """The numbers of each graph with regions that was compiled for ``granularity``."""
        counted = [graph.numbers for graph in self._compiled_graphs]
        return [each for each in counted if each.regions and each.granularity == granularity]

    def stats(self) -> Stats:
        """Count calls by step kind, compiles, CUDA graphs and allocated bytes, and list the streams that hold some."""
        counters, cuda_graphs = self._runtime.counters, self._runtime.cuda_graphs
        return Stats(
            full_calls=counters.calls[StepKind.FULL],
            forecast_calls=counters.calls[StepKind.FORECAST],
            unforecast_calls=counters.unforecast_calls,
            streams=len({stream for stream, _ in self._runtime.states}),
            graphs=len(self._compiled_graphs),
            compiles=counters.compiles,
            captures=cuda_graphs.num_captures if cuda_graphs is not None else 0,
            replays=cuda_graphs.num_replays if cuda_graphs is not None else 0,
            buffer_bytes=self._runtime.buffer_bytes,
            peak_buffer_bytes=max(self._runtime.peak_buffer_bytes, self._runtime.buffer_bytes),
            evicted_streams=self._runtime.uses.num_evicted,
            expired_streams=self._runtime.uses.num_expired,
            held=list_streams(self._runtime),
        )

    def _compile_traced(self, origin: GraphOrigin, tag: str | None, *traced: Any) -> StepCode:
        return compile_steps(self.config, self._notify, origin, tag, *traced)

    def _install(self, origin: GraphOrigin, steps: CompiledSteps) -> BoxedCallable:
        """Make the callable that runs the code of a graph, compiled or loaded, as part of this backend's model."""
        runtime = self._runtime
        info = GraphInfo(len(self._compiled_graphs), steps.inputs)
        if steps.layout is None or steps.coefficient_dtype is None:
            self._no_regions(steps.found, origin)
            is_part = origin.is_part_of_model
            whole = self._variant("a graph without regions", steps.variants[StepKind.FULL])
            run: BoxedCallable = Observer(runtime, info, whole, is_part)
        else:
            self._rejected(steps.found)
            if steps.over_budget:
                self._notify("memory budget", steps.over_budget)
            self._must_be_capturable(steps)
            variants = {kind: self._variant(f"the {kind.value} step", steps.variants[kind]) for kind in StepKind}
            runtime.has_regions = True
            run = Dispatcher(runtime, info, variants, steps.layout, steps.coefficient_dtype)
        runtime.counters.compiles += len(steps.variants)
        compiled = CompiledGraph(steps.passes, steps.numbers, origin.graph_break)
        self._planned.check_graph(lambda: compiled.numbers)
        self._compiled_graphs.append(compiled)
        runtime.clock.has_time_inputs |= steps.inputs.has_time
        return run

    def _variant(self, name: str, code: VariantCode) -> CompiledVariant:
        cuda_graphs = self._runtime.cuda_graphs
        name = f"{name} (graph {len(self._compiled_graphs)})" if self._compiled_graphs else name
        captured = cuda_graphs.wrap(name, code.run, code.capture) if cuda_graphs is not None else None
        return CompiledVariant(code.run, picker(code.input_positions), captured, code.groups)

    def _must_be_capturable(self, steps: CompiledSteps) -> None:
        cuda_graphs = self._runtime.cuda_graphs
        device = steps.variants[StepKind.FULL].capture.device
        if self.config.cuda_graphs and cuda_graphs is not None and (device is None or device.type != cuda_graphs.api.device_type):
            raise ConfigError("cuda_graphs", f"None or False for a model on {device}", True, "CUDA graphs are for CUDA devices.")

    def _compile_plain(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        self._runtime.counters.compiles += 1
        if self.config.compiler == "eager":
            return gm.forward
        compiled: Callable[..., Any] = inductor_compile(gm, list(example_inputs), options=dict(self.config.compiler_options))
        return compiled

    def _no_regions(self, found: RegionSet, origin: GraphOrigin) -> None:
        if origin.is_part_of_model:
            self._rejected(found)
            breaks = (entry.graph_break for entry in self._compiled_graphs if entry.graph_break is not None)
            self._notify("graph breaks", broken(next(breaks, origin.graph_break)))
        else:
            self._notify("no regions", nothing_to_forecast(found) + "\nCompiled as plain torch.compile would.")

    def _rejected(self, found: RegionSet) -> None:
        if entries := "".join(f"\n  {entry}" for entry in found.rejected if entry.reason not in MEANT):
            self._notify("rejected", f"executed in every step instead of forecast (see explain()):{entries}")

    def _notify(self, topic: str, message: str) -> None:
        """Warn once per topic and backend."""
        if topic not in self._said:
            self._said.add(topic)
            warnings.warn(f"taylorseer_fx: {message}", TaylorSeerWarning, stacklevel=2)


def taylorseer_backend(
    order: int = 1,
    interval: int = 5,
    warmup: int = 3,
    *,
    full_steps: Iterable[int] | None = None,
    speedup: float | None = None,
    num_steps: int | None = None,
    plan: str | Path | PlanFile | None = None,
    plan_mismatch: str = "error",
    forecaster: str = "taylor",
    history: int | None = None,
    granularity: str = "module",
    buffer_dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    cuda_graphs: bool | None = None,
    compiler: str = "inductor",
    compiler_options: Mapping[str, Any] | None = None,
    on_no_regions: str = "error",
    disabled_passes: Iterable[str] = (),
    max_streams: int | None = None,
    total_memory_budget: int | None = None,
    stream_policy: str = "error",
    stream_ttl: float | None = None,
) -> TaylorSeerBackend:
    """Make a backend for ``torch.compile`` that executes some denoising steps and forecasts the others.

    Args:
        order: highest derivative of the Taylor polynomial, 0 (plain reuse) to 4. Uses ``order + 1`` buffers per feature.
        interval: every ``interval``-th step after the warm-up is executed, at least 1.
        warmup: number of steps executed at the start, at least 1.
        full_steps: the executed steps as an increasing list of indices from 0, in place of ``interval`` and ``warmup``.
        speedup: steps over full steps, at least 1, in place of ``interval``, ``warmup`` and ``full_steps``: in a run of
            ``num_steps`` steps, ``ceil(num_steps / speedup)`` are executed, in growing gaps (``runtime/placement.py``).
        num_steps: length of a run, for ``speedup`` where no attached pipeline reports it; a pipeline takes precedence.
        plan: a file that ``calibrate`` made: its path, a repository of the Hugging Face hub that holds one, or its content. It
            has order, granularity and a list of full steps for each ``speedup`` that was asked for.
        plan_mismatch: what to do where model or run are not as the plan was made for: "error", or "warn" and use it.
        forecaster: "taylor", the paper's recursion; or for comparison "hermite" (HiCache), "newton" (exact on uneven gaps) or
            "chebyshev" (Spectrum), see ``runtime/forecasters.py``.
        history: full steps whose features are stored, ``order + 1`` (the default) to 12. Only "chebyshev" makes use of more
            than ``order + 1``.
        granularity: "module": a feature per attention and MLP output, before its gate, as in the paper. "stack": one for all that
            the blocks add to the residual stream; a forecast step then costs next to nothing, and so do the buffers, but the
            gates of the current step are not used.
        buffer_dtype: dtype of the derivative buffers; None keeps each feature's own. An eight-bit dtype (torch.float8_e5m2 or
            torch.float8_e4m3fn) is that of the differences of order 1 and up; order 0 keeps the feature's own.
        memory_budget: maximum size of a stream's derivative buffers, in bytes. If a feature per module would exceed it, there is
            one for the stack; ``explain()`` and a warning report it.
        cuda_graphs: None: each step kind runs as a CUDA graph where the model is on a CUDA device; what cannot be captured runs
            as compiled, and a warning explains why. False: none. True: as None, and a model elsewhere is an error. They keep the
            working memory of a step, and the buffers of the last run of an attached pipeline, reserved until ``reset()``.
        compiler: "inductor", or "eager" to run the specialised graphs uncompiled, for tests and debugging.
        compiler_options: options of Inductor, as ``torch.compile(options=...)`` takes them.
        on_no_regions: what to do with a graph without attention or MLP: "error", or "warn" and compile it plainly.
        disabled_passes: names of optional passes to leave out, for tests and debugging: "find_stored", "find_cut_branches",
            "narrow"; on a CPU "sum_few_rows", "fold_repeats"; on a GPU "join_slices", "store_early", "patches_as_products",
            "sum_small_weights". Results stay right; ``explain()`` lists what was left out.
        max_streams: named streams that are held at once, each with all that is nested in it; None for any number.
        total_memory_budget: bytes that the derivative buffers of all streams together may take; None for any number. It chooses
            nothing, other than ``memory_budget``, which is a stream's and chooses its granularity when it is compiled.
        stream_policy: what to do beyond either: "error", or "evict": the stream that was not used for longest, of those none of
            whose blocks is open, is given up, and begins again with full steps if it is called again. A warning reports it once.
        stream_ttl: seconds after which a stream is given up that no block was open of. Checked when a stream is entered; None
            for never.

    Returns:
        A callable ``(gm, example_inputs)`` for ``torch.compile(model, backend=...)``. Use one per model: it holds the
        model's streams.

    Raises:
        ConfigError: an argument is wrong; it names the argument, what it may be and what it got.

    The compiled model's first call raises ``NoRegionsError`` where there is nothing to forecast; all errors of this package are
    ``TaylorSeerError`` and arrive unwrapped, not as ``torch._dynamo.exc.BackendCompilerFailed``.
    """
    planned: Any = plan
    steps: Any = full_steps
    disabled: Any = disabled_passes
    return TaylorSeerBackend(
        BackendConfig(
            order=order,
            interval=interval,
            warmup=warmup,
            full_steps=steps,
            speedup=speedup,
            num_steps=num_steps,
            plan=planned,
            plan_mismatch=plan_mismatch,
            forecaster=forecaster,
            history=history,
            granularity=granularity,
            buffer_dtype=buffer_dtype,
            memory_budget=memory_budget,
            cuda_graphs=cuda_graphs,
            compiler=compiler,
            compiler_options=compiler_options if compiler_options is not None else {},
            on_no_regions=on_no_regions,
            disabled_passes=disabled,
            max_streams=max_streams,
            total_memory_budget=total_memory_budget,
            stream_policy=stream_policy,
            stream_ttl=stream_ttl,
        )
    )


class _Registered:
    """The registered name: ``torch.compile(model, backend="taylorseer", options={"order": 2})``.

    Each compiled graph gets a backend of its own. To hold it (``explain``, ``stream``, ``reset``), make it with
    ``taylorseer_backend`` and pass it to ``torch.compile``.

    An object, since Dynamo takes compiled code for whoever has an equal backend: a function is itself when copied, and a copied
    model would share its original's streams.
    """

    __name__ = "taylorseer"

    def __call__(
        self,
        gm: fx.GraphModule,
        example_inputs: Sequence[Any],
        *,
        options: Mapping[str, Any] | None = None,
        mode: str | None = None,
    ) -> Callable[..., Any]:
        """Compile one Dynamo graph, for ``torch.compile``.

        Raises:
            ConfigError: an option is unknown or wrong, or ``mode`` is given.
        """
        if mode is not None:
            hint = f"{mode_in_options(mode)} Pass Inductor's as options={{'compiler_options': {{...}}}}."
            raise ConfigError("mode", "left out", mode, hint)
        return TaylorSeerBackend(BackendConfig.from_options(options or {}))(gm, example_inputs)


taylorseer = _Registered()
