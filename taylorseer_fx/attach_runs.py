"""The runs of a pipeline, and the attributes that attaching sets: on instances only, and taken off again."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from taylorseer_fx.runtime.scope import Run, Scope, StepIndex
from taylorseer_fx.runtime.state import Runtime

Method = Callable[..., Any]
End = Callable[[], None]


def nothing(*_args: Any, **_kwargs: Any) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Override:
    """An attribute set on an instance, over what the class or an earlier override has."""

    owner: "weakref.ref[Any]"
    name: str
    replacement: "weakref.ref[Method]"  # weak: it holds a method of the owner, which would be kept alive
    before: Any

    def is_in_place(self, owner: Any) -> bool:
        """Does ``owner`` have it, if only beneath the stand-ins of others?"""
        found = vars(owner).get(self.name) if owner is self.owner() else None
        while isinstance(found, _StandIn) and found is not self.replacement():
            found = found.original
        return isinstance(found, _StandIn)

    def undo(self) -> None:
        owner, replacement = self.owner(), self.replacement()
        if owner is None or replacement is None or vars(owner).get(self.name) is not replacement:
            return  # gone, or overridden by somebody else since
        if self.before is None:
            del vars(owner)[self.name]
        else:
            vars(owner)[self.name] = self.before


def override(owner: Any, name: str, stand_in: Method) -> Override:
    """Set an attribute; ``undo()`` puts back what was there."""
    attributes = vars(owner)
    before = attributes.get(name)
    attributes[name] = stand_in
    return Override(weakref.ref(owner), name, weakref.ref(stand_in), before)


def override_method(owner: Any, name: str, function: Method) -> Override:
    """Set a function in the place of a method, or of none; a copy of ``owner`` has the method."""
    return override(owner, name, _StandIn(function, getattr(owner, name, nothing)))


@dataclass(frozen=True, eq=False)
class _StandIn:
    """A function in the place of ``original``. Copied or pickled with its owner it is the copy's own ``original`` again: a copy
    of an attached pipeline or model is attached to nothing.
    """

    function: Method
    original: Method

    def __getattr__(self, name: str) -> Any:
        """What else it is asked, such as the arguments of a scheduler's ``step``, is that of ``original``."""
        return self.original if name == "__wrapped__" else getattr(self.original, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return itself, (self.original,)


def itself(value: Any) -> Any:
    """Return ``value``: what a stand-in is copied and pickled as."""
    return value


@dataclass(eq=False)
class PipelineRuns:
    """The runs of one pipeline, one after another or nested."""

    runtime: Runtime
    pipe: "weakref.ref[Any]"
    name: str
    indices: dict[type, StepIndex] = field(default_factory=dict)
    open_runs: list[End] = field(default_factory=list)
    counted: list[Override] = field(default_factory=list)  # ``step`` of each scheduler so far, once

    def begin(self, num_steps: int | None = None, at_end: End = nothing) -> End:
        """Begin a run of ``num_steps`` steps, as far as that is known; returns what ends it, once, after ``at_end``."""
        self.runtime.on_run(self.pipe())
        index = self._count_steps()
        scopes = self.runtime.scopes
        leave = scopes.begin(Scope(self.name, run=Run(index, self.num_calls(num_steps)), is_stream=False))
        entered = scopes.get()
        assert entered is not None

        def end() -> None:
            if end in self.open_runs:
                self.open_runs.remove(end)
                at_end()
                leave()
                index.end()
                self.runtime.forget(entered.name)

        self.open_runs.append(end)
        return end

    def num_calls(self, num_steps: int | None) -> int | None:
        """The times at which a run of ``num_steps`` steps calls the model: a scheduler of higher order has several a step."""
        scheduler: Any = getattr(self.pipe(), "scheduler", None)
        if num_steps is None or getattr(scheduler, "order", 1) == 1:
            return num_steps
        return len(scheduler.timesteps) - (getattr(scheduler, "begin_index", None) or 0)

    def _count_steps(self) -> StepIndex:
        """The index of the scheduler at hand, from 0; some schedulers keep one themselves, but not all."""
        scheduler: Any = getattr(self.pipe(), "scheduler", None)
        index = self.indices.setdefault(type(scheduler), StepIndex())
        self.counted = [each for each in self.counted if each.owner() is not None]
        has_steps = callable(getattr(scheduler, "step", None))
        if has_steps and not any(each.is_in_place(scheduler) for each in self.counted):
            self.counted.append(override_method(scheduler, "step", index.counting(scheduler.step)))
        index.begin(0 if has_steps else None)
        return index

    def count_no_more(self) -> None:
        """Leave the schedulers as they were."""
        for each in reversed(self.counted):
            each.undo()
        self.counted.clear()


def opening(original: Method, begin: Callable[[int | None], End]) -> Method:
    """A ``progress_bar`` that begins something, which ends when the bar is closed, iterated to its end, or collected.

    ``begin`` is given the bar's total: the number of steps, None if the bar has none.
    """

    def progress_bar(*args: Any, **kwargs: Any) -> Any:
        bar = original(*args, **kwargs)
        end, reference = begin(getattr(bar, "total", None)), weakref.ref(bar)  # weak: in a cycle the bar would be collected late
        close_before = vars(bar).get("close")  # of another backend, which is attached to the pipeline, too

        def close_and_end(*args: Any, **kwargs: Any) -> None:
            end()
            bar = reference()
            if close_before is not None:
                close_before(*args, **kwargs)
            elif bar is not None:
                type(bar).close(bar, *args, **kwargs)

        bar.close = close_and_end
        if bar.iterable is not None:  # a disabled bar does not close itself when it is iterated
            bar.iterable = _and_then(bar.iterable, end)
        return bar

    return progress_bar


def _and_then(items: Iterable[Any], finish: End) -> Iterator[Any]:
    try:
        yield from items
    finally:
        finish()
