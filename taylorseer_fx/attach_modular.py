"""Join diffusers' modular pipelines, which are made of blocks.

    pipe(...)                    one run: its blocks are called once, and a generation begins and ends with that call
    block.progress_bar(...)      closed: the loop is over, its buffers are freed before what comes next (a decoder)
    pipe.guider                  the streams within the run, and the step; see ``attach_guiders``

``pipe(...)`` is looked up on the class, where it calls what the instance holds as its blocks; so a stand-in is set there. Guiders
and blocks are taken as they are when a run begins, so that components loaded or exchanged later are found, and are given back as
they were when it ends, so that between runs they can be copied, pickled and shared.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from taylorseer_fx.attach_guiders import GuidedCalls, guiders
from taylorseer_fx.attach_runs import End, Override, PipelineRuns, itself, opening, override_method
from taylorseer_fx.errors import ConfigError

_BLOCKS = "_blocks"


def is_modular(target: Any) -> bool:
    """Is ``target`` a pipeline made of blocks?"""
    return not isinstance(target, nn.Module) and callable(target) and hasattr(target, "blocks") and hasattr(target, "components")


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
        end = begin_guided(self.runs, blocks=blocks)
        try:
            yield
        finally:
            end()


def begin_guided(runs: PipelineRuns, num_steps: int | None = None, blocks: Any = None) -> End:
    """Begin a run that listens to the guiders of the pipeline, and to the loops in ``blocks``; returns what ends it.

    Loops report the number of steps when they begin.
    """
    run = _Run(runs)
    end = runs.begin(num_steps, run.give_back)
    try:
        run.take(runs.pipe(), blocks)
    except BaseException:
        end()
        raise
    return end


@dataclass(eq=False)
class _Run:
    """The state that one run takes from its pipeline, and gives back."""

    runs: PipelineRuns
    overrides: list[Override] = field(default_factory=list)
    open_loops: set[object] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.calls = GuidedCalls(self.runs.runtime)

    def take(self, pipe: Any, blocks: Any) -> None:
        """Listen to the guiders and the loops."""
        for guider in guiders(pipe):
            for name, method in self.calls.methods(guider).items():
                self.overrides.append(override_method(guider, name, method))
        for loop in loops(blocks):
            self.overrides.append(override_method(loop, "progress_bar", opening(loop.progress_bar, self._begin_loop)))

    def give_back(self) -> None:
        """Leave guiders and loops as they were; a progress bar that is collected later ends nothing."""
        for each in reversed(self.overrides):
            each.undo()
        self.open_loops.clear()
        self.calls.leave()

    def _begin_loop(self, num_steps: int | None) -> End:
        scope, loop = self.runs.runtime.scopes.get(), object()
        if scope is not None and scope.run is not None:
            scope.run.num_steps = self.runs.num_calls(num_steps)
        self.open_loops.add(loop)

        def end() -> None:
            if loop in self.open_loops and scope is not None:
                self.open_loops.remove(loop)
                self.runs.runtime.forget(scope.name)

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
        return itself, (self._stood_for,)

    def __repr__(self) -> str:
        return repr(self._stood_for)


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
