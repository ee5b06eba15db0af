"""Join diffusers' modular pipelines: their runs, and the streams that a guider makes.

    pipe(...)                            one run: its blocks are called once, and a generation begins and ends with that call
    block.progress_bar(...)              closed: the loop is over, its buffers are freed before what comes next (a decoder)
    guider.set_state(step=i, ...)        the step, known on the host
    guider.prepare_inputs...(...)        the batches of the step, each with its identifier: "pred_cond", "pred_uncond", ...
    guider.prepare_models(model)         the model is called with the next of these batches ...
    guider.cleanup_models(model)         ... and was

``pipe(...)`` is looked up on the class, where it calls what the instance holds as its blocks; so a stand-in is set there. Guiders
and blocks are taken as they are when a run begins, so that components loaded or exchanged later are found, and are given back as
they were when it ends, so that between runs they can be copied, pickled and shared.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from taylorseer_fx.attach_runs import End, Method, Override, PipelineRuns, nothing, opening, override
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.runtime.dispatch import Runtime
from taylorseer_fx.runtime.scope import Scope

_BLOCKS = "_blocks"
_IDENTIFIER_KEY = "__guidance_identifier__"


def is_modular(target: Any) -> bool:
    """Is ``target`` a pipeline made of blocks?"""
    return not isinstance(target, nn.Module) and callable(target) and hasattr(target, "blocks") and hasattr(target, "components")


def is_guider(component: Any) -> bool:
    """Does ``component`` make batches of its own for the calls of a step?"""
    names = ("set_state", "prepare_inputs", "prepare_models", "cleanup_models")
    return all(callable(getattr(component, name, None)) for name in names)


def blocks_of(pipe: Any) -> tuple[str, Any]:
    """The attribute that ``pipe`` calls when it is called, and its value.

    Raises:
        ConfigError: there is none.
    """
    blocks = vars(pipe).get(_BLOCKS)
    if not callable(blocks):
        hint = "Attach its model instead, and name the streams by backend.stream()."
        raise ConfigError("pipe_or_model", f"a pipeline that keeps the blocks it calls as {_BLOCKS!r}", type(pipe).__name__, hint)
    return _BLOCKS, blocks


@dataclass(eq=False)
class ModularRuns:
    """The runs of one modular pipeline. ``find_models`` attaches those models that are not yet."""

    runs: PipelineRuns
    is_attached: Callable[[], bool]
    find_models: Callable[[Any], None]

    @contextmanager
    def running(self, pipe: Any, blocks: Any) -> Iterator[None]:
        """A run, if it is of the attached pipeline and not of a shallow copy, which calls the same blocks."""
        if pipe is not self.runs.pipe() or not self.is_attached():
            yield
            return
        self.find_models(pipe)
        end = begin_guided(self.runs, blocks)
        try:
            yield
        finally:
            end()


def begin_guided(runs: PipelineRuns, blocks: Any = None) -> End:
    """Begin a run that listens to the guiders of the pipeline, and to the loops in ``blocks``; returns what ends it."""
    run = _Run(runs.runtime)
    end = runs.begin(run.give_back)
    try:
        run.take(runs.pipe(), blocks)
    except BaseException:
        end()
        raise
    return end


@dataclass(eq=False)
class _Run:
    """What one run takes of its pipeline, and gives back."""

    runtime: Runtime
    overrides: list[Override] = field(default_factory=list)
    open_loops: set[object] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.calls = GuidedCalls(self.runtime)

    def take(self, pipe: Any, blocks: Any) -> None:
        """Listen to the guiders and the loops."""
        for guider in guiders(pipe):
            for name, method in self.calls.methods(guider).items():
                self.overrides.append(override(guider, name, method))
        for loop in loops(blocks):
            self.overrides.append(override(loop, "progress_bar", opening(loop.progress_bar, self._begin_loop)))

    def give_back(self) -> None:
        """Leave guiders and loops as they were; a progress bar that is collected later ends nothing."""
        for each in reversed(self.overrides):
            each.undo()
        self.open_loops.clear()
        self.calls.leave()

    def _begin_loop(self) -> End:
        scope, loop = self.runtime.scopes.get(), object()
        self.open_loops.add(loop)

        def end() -> None:
            if loop in self.open_loops and scope is not None:
                self.open_loops.remove(loop)
                self.runtime.forget(scope.name)

        return end


class RunningBlocks:
    """Stands for a pipeline's blocks: the same to whoever looks, but to call them is a run. A copy is one of the blocks alone."""

    def __init__(self, blocks: Any, running: Callable[[Any, Any], AbstractContextManager[None]]) -> None:
        self._stood_for, self._running = blocks, running

    def __call__(self, pipe: Any, *args: Any, **kwargs: Any) -> Any:
        with self._running(pipe, self._stood_for):
            return self._stood_for(pipe, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stood_for, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._stood_for)

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return _itself, (self._stood_for,)

    def __repr__(self) -> str:
        return repr(self._stood_for)


def _itself(value: Any) -> Any:
    return value


def guiders(pipe: Any) -> list[Any]:
    """Those among the components of ``pipe``, each once."""
    return list({id(component): component for component in pipe.components.values() if is_guider(component)}.values())


def loops(blocks: Any) -> list[Any]:
    """The blocks in ``blocks`` that have a progress bar, each once."""
    found: dict[int, Any] = {}

    def visit(block: Any) -> None:
        if id(block) not in found:
            found[id(block)] = block
            for inner in getattr(block, "sub_blocks", {}).values():
                visit(inner)

    visit(blocks)
    return [block for block in found.values() if callable(getattr(block, "progress_bar", None))]


@dataclass(eq=False)
class GuidedCalls:
    """What guiders say in one run.

    ``names``: of the batches that were prepared since the model was called last, each once, in their order. Two guiders may each
    prepare theirs for calls that serve both (video and audio).
    """

    runtime: Runtime
    names: list[str] = field(default_factory=list)
    num_calls: int = 0
    step: int | None = None
    leave: End = nothing

    def methods(self, guider: Any) -> dict[str, Method]:
        """What stands for the methods of ``guider``."""
        methods = {
            "set_state": self._telling_step(guider.set_state),
            "prepare_models": self._entering(guider.prepare_models),
            "cleanup_models": self._leaving(guider.cleanup_models),
        }
        key = getattr(guider, "_identifier_key", _IDENTIFIER_KEY)
        for name in ("prepare_inputs", "prepare_inputs_from_block_state"):
            if callable(getattr(guider, name, None)):
                methods[name] = self._preparing(getattr(guider, name), key)
        return methods

    def _telling_step(self, original: Method) -> Method:
        def set_state(*args: Any, **kwargs: Any) -> Any:
            step = kwargs.get("step", args[0] if args else None)
            self.step = step if isinstance(step, int) else None
            return original(*args, **kwargs)

        return set_state

    def _preparing(self, original: Method, key: str) -> Method:
        def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
            batches = original(*args, **kwargs)
            self._note([getattr(batch, key, None) for batch in batches])
            return batches

        return prepare_inputs

    def _note(self, identifiers: Sequence[Any]) -> None:
        if self.num_calls > 0:
            self.names, self.num_calls = [], 0
        names = [str(name) if name is not None else f"batch {i}" for i, name in enumerate(identifiers)]
        self.names += [name for name in names if name not in self.names]

    def _entering(self, original: Method) -> Method:
        def prepare_models(denoiser: Any, *args: Any, **kwargs: Any) -> Any:
            self.leave()
            before = _forwards(denoiser)
            result = original(denoiser, *args, **kwargs)
            self._enter(is_changed=_forwards(denoiser) != before)
            return result

        return prepare_models

    def _enter(self, is_changed: bool) -> None:
        entered, name = ExitStack(), None
        if self.num_calls < len(self.names):
            name = self.names[self.num_calls]
            entered.callback(self.runtime.scopes.begin(Scope(name, self.step)))
        if is_changed:
            self.runtime.notify("a guider changes the model", _CHANGED.format(name=name))
            entered.enter_context(torch.compiler.set_stance("force_eager"))
        self.leave = entered.close
        self.num_calls += 1

    def _leaving(self, original: Method) -> Method:
        def cleanup_models(*args: Any, **kwargs: Any) -> Any:
            self.leave()
            return original(*args, **kwargs)

        return cleanup_models


def _forwards(model: Any) -> list[Any]:
    """What is set on the modules of ``model`` over the ``forward`` of their classes."""
    return [vars(module).get("forward") for module in model.modules()] if isinstance(model, nn.Module) else []


_CHANGED = (
    "for its batch {name!r} the guider changes modules of the model (leaves out a layer, or its attention) and puts them back. "
    "torch.compile would compile the model anew each time, until it gives up; so these calls run as they are, in full, neither "
    "compiled nor forecast. The guider's other batches are."
)
