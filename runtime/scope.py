"""The caller's own account of its calls: their stream, and perhaps their step and the pipeline run that they are part of.

Scopes nest, and their names join: ``with backend.stream("request-7")`` around a pipeline whose model is called in
``cache_context("cond")`` makes the stream ``request-7/cond``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

Time = tuple[float, ...]  # largest and smallest value of an input that may be the time
Reading = tuple[Time, ...]  # of a call: of each such input


@dataclass(eq=False)
class StepIndex:
    """The number of steps that a pipeline's scheduler made in the run at hand, and whether it can be relied on for the time.

    None where there is no scheduler to count for. While ``trusted`` is None the timesteps are read and compared: an index that
    moves just when they do, for a whole run, saves the later runs from reading them.
    """

    value: int | None = None
    trusted: bool | None = None
    _agreed: int = 0
    _last: tuple[int | None, Reading] | None = None

    def begin(self, value: int | None) -> None:
        self.value, self._last, self._agreed = value, None, 0

    def counting(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The scheduler's ``step``, counted: once, should what it calls be counted already."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            before = self.value or 0
            result = step(*args, **kwargs)
            self.value = before + 1
            return result

        return counted

    def compare(self, time: Reading) -> None:
        """Compare, for a call at ``time``, whether the index moved with it."""
        index, last = self.value, self._last
        if last is not None and self.trusted is None:
            if (index != last[0]) != (time != last[1]):
                self.trusted = False
            self._agreed += time != last[1]
        self._last = (index, time)

    def end(self) -> None:
        if self.trusted is None and self._agreed > 1:
            self.trusted = True


@dataclass(eq=False)
class Run:
    """One run of an attached pipeline: a generation.

    ``num_steps``: its length, as soon as that is known; ``step``: the latest that any of its streams reached; ``position``: the
    index at its latest forward.
    """

    index: StepIndex
    num_steps: int | None = None
    step: int = 0
    position: int | None = None

    def move_to(self, position: int | None) -> bool:
        """Note where a forward is. Was there a step before it without any?"""
        has_gap = position is not None and self.position is not None and position > self.position + 1
        self.position = position
        return has_gap


@dataclass(frozen=True, eq=False)
class Scope:
    """The caller's account inside one ``with``; ``step`` None leaves the step to the clock.

    ``is_stream``: its forwards are those of one stream, so that each is a step where nothing else gives the step. Not so for a
    whole pipeline run, which may hold a conditional and an unconditional call a step. ``told_by``: the name of the block in which
    the user gave the step, so that each step there must follow the one before; None for a step that a pipeline reports.
    """

    name: str
    step: int | None = None
    run: Run | None = None
    is_stream: bool = True
    told_by: str | None = None
    outermost: str | None = None

    @property
    def position(self) -> int | None:
        """The step that the generation stands at, where that is known without the timestep."""
        if self.step is not None or self.run is None:
            return self.step
        return self.run.index.value

    @property
    def root(self) -> str:
        """The name of the outermost scope that this one is in, or is."""
        return self.outermost if self.outermost is not None else self.name

    def inside(self, outer: "Scope | None") -> "Scope":
        """This scope within ``outer``."""
        if outer is None:
            return self
        step, told_by = (outer.step, outer.told_by) if self.step is None else (self.step, None)
        if self.told_by is not None:
            told_by = f"{outer.name}/{self.told_by}"
        return Scope(f"{outer.name}/{self.name}", step, self.run or outer.run, self.is_stream, told_by, outer.root)


def _nothing(_scope: Scope) -> None:
    pass


class ScopeVariable:
    """The scope of the running thread or task; another thread's scope is never seen.

    ``on_open`` is called before each scope is entered, and may refuse it by an exception; ``on_close`` after each is left.
    """

    def __init__(self, on_open: Callable[[Scope], None] = _nothing, on_close: Callable[[Scope], None] = _nothing) -> None:
        self._current: ContextVar[Scope | None] = ContextVar("taylorseer_stream", default=None)
        self._on_open, self._on_close = on_open, on_close

    def get(self) -> Scope | None:
        return self._current.get()

    @contextmanager
    def entered(self, scope: Scope) -> Iterator[None]:
        entered = scope.inside(self._current.get())
        self._on_open(entered)
        token = self._current.set(entered)
        try:
            yield
        finally:
            self._current.reset(token)
            self._on_close(entered)

    def begin(self, scope: Scope) -> Callable[[], None]:
        """Enter ``scope`` and return a function that leaves it. Leaving twice does nothing, and leaving it after another scope
        was entered leaves that as it is.
        """
        outer = self._current.get()
        entered = scope.inside(outer)
        self._on_open(entered)
        self._current.set(entered)
        still_open = [entered]

        def leave() -> None:
            if self._current.get() is entered:
                self._current.set(outer)
            if still_open:
                self._on_close(still_open.pop())

        return leave
