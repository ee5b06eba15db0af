"""Join diffusers: learn from a pipeline or a model which stream a call belongs to and when a generation begins.

    pipe.progress_bar(...)            one run: a generation begins, and ends when the bar is closed, by whatever way
    pipe.scheduler.step(...)          counted on the host: the step, once it was seen to move just when the timestep does
    model.cache_context("cond")       the stream within the run
    model._reset_stateful_cache()     the pipeline is done (where only the model is attached)

Pipelines that are made of blocks have no progress bar; see ``attach_modular`` for these, and for a guider's reports in a run.

All of it by attributes set on the instances, so other pipelines of the same class are left alone, ``torch.compile``'s wrapper
passes them through, and ``detach`` takes them off again.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from taylorseer_fx.attach_modular import ModularRuns, RunningBlocks, begin_guided, blocks_of, is_modular
from taylorseer_fx.attach_runs import Override, PipelineRuns, opening, override, override_method
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.runtime.scope import Scope
from taylorseer_fx.runtime.state import Runtime


@dataclass
class Attachments:
    """The pipelines and models that one backend is attached to."""

    runtime: Runtime
    _overrides: list[Override] = field(default_factory=list)
    _attached: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    _pipelines: list[PipelineRuns] = field(default_factory=list)
    _num_pipelines: int = 0

    def attach(self, target: Any) -> None:
        """Attach a pipeline with all its models, or one model.

        Raises:
            ConfigError: ``target`` is neither.
        """
        if is_pipeline(target):
            self._attach_pipeline(target)
        elif is_modular(target):
            self._attach_modular(target)
        elif isinstance(target, nn.Module):
            self._attach_model(unwrapped(target), has_pipeline=False)
        else:
            raise neither(target)

    def detach(self) -> None:
        """Leave everything as it was before."""
        for each in reversed(self._overrides):
            each.undo()
        for runs in self._pipelines:
            for end in list(runs.open_runs):
                end()
            runs.count_no_more()
        self._overrides.clear()
        self._attached.clear()
        self._pipelines.clear()

    def _attach_pipeline(self, pipe: Any) -> None:
        if pipe in self._attached:
            return
        self._replace(pipe, "progress_bar", opening(pipe.progress_bar, partial(begin_guided, self._new_runs(pipe))))
        self._attach_models(pipe)

    def _attach_modular(self, pipe: Any) -> None:
        if pipe in self._attached:
            return
        name, blocks = blocks_of(pipe)
        runs = self._new_runs(pipe)
        modular = ModularRuns(runs, lambda: runs in self._pipelines, self._attach_models)
        self._overrides.append(override(pipe, name, RunningBlocks(blocks, modular.running)))
        self._attach_models(pipe)

    def _new_runs(self, pipe: Any) -> PipelineRuns:
        self._attached.add(pipe)
        self._num_pipelines += 1
        self._pipelines.append(PipelineRuns(self.runtime, weakref.ref(pipe), f"pipeline {self._num_pipelines}"))
        return self._pipelines[-1]

    def _attach_models(self, pipe: Any) -> None:
        for component in models_of(pipe).values():
            self._attach_model(unwrapped(component), has_pipeline=True)

    def _attach_model(self, model: nn.Module, has_pipeline: bool) -> None:
        if model in self._attached:
            return
        self._attached.add(model)
        contexts = _ModelContexts(self.runtime)
        cache_context: Any = getattr(model, "cache_context", None)
        if cache_context is not None:
            self._replace(model, "cache_context", contexts.entering(cache_context))
        if not has_pipeline:
            self._replace(model, "_reset_stateful_cache", contexts.resetting(getattr(model, "_reset_stateful_cache", None)))

    def _replace(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        self._overrides.append(override_method(owner, name, function))


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


def is_pipeline(target: Any) -> bool:
    """Is ``target`` a pipeline with a loop of its own, not made of blocks?"""
    return callable(getattr(target, "progress_bar", None)) and hasattr(target, "components")


def models_of(pipe: Any) -> dict[str, nn.Module]:
    """The models among the components of ``pipe``, by name; those that it has not loaded are left out."""
    return {name: component for name, component in pipe.components.items() if isinstance(component, nn.Module)}


def neither(target: Any) -> ConfigError:
    """The error for what is neither pipeline nor model."""
    hint = "A pipeline has components, and a progress_bar() or blocks."
    return ConfigError("pipe_or_model", "a diffusers pipeline or a torch.nn.Module", type(target).__name__, hint)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``'s wrapper."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model
