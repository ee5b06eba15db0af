"""Join diffusers: learn from a pipeline or a model which stream a call belongs to and when a generation begins.

    pipe.progress_bar(...)            one run: a generation begins, and ends when the bar is closed, by whatever way
    pipe.scheduler.step_index         the step, known on the host, once it was seen to move just when the timestep does
    model.cache_context("cond")       the stream within the run
    model._reset_stateful_cache()     the pipeline is done (where only the model is attached)

A modular pipeline has its progress bars in the loops among its blocks, and guiders in place of contexts (``attach_modular``).

All of it by attributes set on the instances, so other pipelines of the same class are left alone, ``torch.compile``'s wrapper
passes them through, and ``detach`` takes them off again.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from taylorseer_fx.attach_modular import GuiderStreams, is_guider, loops_of
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.runtime.dispatch import Runtime
from taylorseer_fx.runtime.scope import Run, Scope, StepIndex


@dataclass
class Attachments:
    """What one backend is attached to."""

    runtime: Runtime
    _overrides: list["_Override"] = field(default_factory=list)
    _attached: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    _pipelines: "list[_PipelineRuns]" = field(default_factory=list)
    _num_pipelines: int = 0

    def attach(self, target: Any) -> None:
        """Attach a pipeline with all its models, or one model.

        Raises:
            ConfigError: ``target`` is neither.
        """
        if _is_pipeline(target):
            self._attach_pipeline(target)
        elif isinstance(target, nn.Module):
            self._attach_model(_unwrapped(target), has_pipeline=False)
        else:
            hint = "A pipeline has components and a progress_bar(), or blocks of which one has it."
            raise ConfigError("pipe_or_model", "a diffusers pipeline or a torch.nn.Module", type(target).__name__, hint)

    def detach(self) -> None:
        """Leave everything as it was before."""
        for override in reversed(self._overrides):
            override.undo()
        for runs in self._pipelines:
            for end in list(runs.open_runs):
                end()
        self._overrides.clear()
        self._attached.clear()
        self._pipelines.clear()

    def _attach_pipeline(self, pipe: Any) -> None:
        if pipe in self._attached:
            return
        self._attached.add(pipe)
        self._num_pipelines += 1
        runs = _PipelineRuns(self.runtime, weakref.ref(pipe), f"pipeline {self._num_pipelines}")
        self._pipelines.append(runs)
        for loop in loops_of(pipe):
            self._override(loop, "progress_bar", runs.opening(loop.progress_bar))
        for component in pipe.components.values():
            if isinstance(component, nn.Module):
                self._attach_model(_unwrapped(component), has_pipeline=True)
            elif is_guider(component):
                runs.at_the_end.append(self._attach_guider(component))

    def _attach_guider(self, guider: Any) -> Callable[[], None]:
        """Returns what ends a stream that the guider began and did not end."""
        streams = GuiderStreams.of(guider, self.runtime.scopes)
        for name, replacement in streams.replacements(guider).items():
            self._override(guider, name, replacement)
        return streams.leave

    def _attach_model(self, model: nn.Module, has_pipeline: bool) -> None:
        if model in self._attached:
            return
        self._attached.add(model)
        contexts = _ModelContexts(self.runtime)
        cache_context: Any = getattr(model, "cache_context", None)
        if cache_context is not None:
            self._override(model, "cache_context", contexts.entering(cache_context))
        if not has_pipeline:
            self._override(model, "_reset_stateful_cache", contexts.resetting(getattr(model, "_reset_stateful_cache", None)))

    def _override(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        attributes, replacement = vars(owner), _Replacement(function, getattr(owner, name, _nothing))
        self._overrides.append(_Override(weakref.ref(owner), name, replacement, attributes.get(name)))
        attributes[name] = replacement


@dataclass(frozen=True, eq=False)
class _Replacement:
    """A function in the place of ``original``. Copied or pickled with its owner it is the copy's own ``original`` again: a copy
    of an attached pipeline or model is attached to nothing.
    """

    function: Callable[..., Any]
    original: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Callable[..., Any]]]:
        return _as_it_is, (self.original,)


def _as_it_is(original: Callable[..., Any]) -> Callable[..., Any]:
    return original


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    """What stands in a copy for a method that only attaching gave to its owner."""


@dataclass(frozen=True)
class _Override:
    """An attribute set on an instance, over what the class or an earlier override has."""

    owner: "weakref.ref[Any]"
    name: str
    replacement: Callable[..., Any]
    before: Callable[..., Any] | None

    def undo(self) -> None:
        owner = self.owner()
        if owner is None or vars(owner).get(self.name) is not self.replacement:
            return  # gone, or overridden by somebody else since
        if self.before is None:
            del vars(owner)[self.name]
        else:
            vars(owner)[self.name] = self.before


@dataclass(eq=False)
class _PipelineRuns:
    """The runs of one pipeline, one after another or nested."""

    runtime: Runtime
    pipe: "weakref.ref[Any]"
    name: str
    indices: dict[type, StepIndex] = field(default_factory=dict)
    open_runs: list[Callable[[], None]] = field(default_factory=list)
    at_the_end: list[Callable[[], None]] = field(default_factory=list)

    def opening(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``pipe.progress_bar`` that begins a run, which ends when the bar is closed, iterated to its end, or collected."""

        def progress_bar(*args: Any, **kwargs: Any) -> Any:
            bar = original(*args, **kwargs)
            end, reference = self.begin(), weakref.ref(bar)  # weak: in a cycle the bar would be collected late

            def close_and_end(*args: Any, **kwargs: Any) -> None:
                end()
                bar = reference()
                if bar is not None:
                    type(bar).close(bar, *args, **kwargs)

            bar.close = close_and_end
            if bar.iterable is not None:  # a disabled bar does not close itself when it is iterated
                bar.iterable = _and_then(bar.iterable, end)
            return bar

        return progress_bar

    def begin(self) -> Callable[[], None]:
        """Begin a run; returns what ends it, once."""
        scheduler_type = type(getattr(self.pipe(), "scheduler", None))
        index = self.indices.setdefault(scheduler_type, StepIndex(self._step_index))
        index.begin()
        scopes = self.runtime.scopes
        leave = scopes.begin(Scope(self.name, run=Run(index), is_stream=False))
        entered = scopes.get()
        assert entered is not None

        def end() -> None:
            if end in self.open_runs:
                self.open_runs.remove(end)
                for leave_stream in self.at_the_end:
                    leave_stream()
                leave()
                index.end()
                self.runtime.forget(entered.name)

        self.open_runs.append(end)
        return end

    def _step_index(self) -> int | None:
        """None where the scheduler keeps none; -1 before its first step."""
        scheduler: Any = getattr(self.pipe(), "scheduler", None)
        if not hasattr(scheduler, "step_index"):
            return None
        return -1 if scheduler.step_index is None else int(scheduler.step_index)


@dataclass(eq=False)
class _ModelContexts:
    """The cache contexts of one model."""

    runtime: Runtime
    entered: set[str] = field(default_factory=set)

    def entering(self, original: Callable[..., AbstractContextManager[None]]) -> Callable[..., AbstractContextManager[None]]:
        @contextmanager
        def cache_context(name: str, **kwargs: Any) -> Iterator[None]:
            step = kwargs.get("step_index")
            self.entered.add(name)
            scope = Scope(name, step if isinstance(step, int) else None)
            with self.runtime.scopes.entered(scope), original(name, **kwargs):
                yield

        return cache_context

    def resetting(self, original: Callable[..., None] | None) -> Callable[..., None]:
        def reset_stateful_cache(*args: Any, **kwargs: Any) -> None:
            outer = self.runtime.scopes.get()
            self.runtime.forget(outer.name if outer is not None else None, self.entered)
            if original is not None:
                original(*args, **kwargs)

        return reset_stateful_cache


def _and_then(items: Iterable[Any], finish: Callable[[], None]) -> Iterator[Any]:
    try:
        yield from items
    finally:
        finish()


def _is_pipeline(target: Any) -> bool:
    return hasattr(target, "components") and bool(loops_of(target))


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``'s wrapper."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model
