"""``with backend.stream(name)``: the caller says which stream its calls belong to, and perhaps which step it is at."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Scope:
    """What the caller said; ``step`` None leaves the step to the clock."""

    name: str
    step: int | None


class ScopeVariable:
    """The scope of the running thread or task; another thread's scope is never seen."""

    def __init__(self) -> None:
        self._current: ContextVar[Scope | None] = ContextVar("taylorseer_stream", default=None)

    def get(self) -> Scope | None:
        return self._current.get()

    @contextmanager
    def entered(self, scope: Scope) -> Iterator[None]:
        token = self._current.set(scope)
        try:
            yield
        finally:
            self._current.reset(token)
