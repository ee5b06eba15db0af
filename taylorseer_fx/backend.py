"""The backend: the callable that ``torch.compile`` gives each graph to, and the object that users hold."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
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
    nothing_compiled,
    nothing_to_forecast,
    unknown_stream,
    where_to_put,
)
from taylorseer_fx.numbers import GraphNumbers
from taylorseer_fx.passes.regions import MEANT, RegionSet
from taylorseer_fx.passes.steps import StepKind
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
        tag = cache_tag(gm, example_inputs, self.config, origin.graph_break, origin.is_part)
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
        guider, or from the scheduler, whose steps are counted, without reading from the device, once a whole run has shown that
        they are made as the timesteps move; buffers are freed when the run is over, or kept for the next where steps are CUDA
        graphs, which need them where they are. Before or after ``torch.compile``, for any number of pipelines. ``detach()``
        undoes it.

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
