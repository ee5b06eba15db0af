"""Exceptions and warnings.

RuntimeError
└── TaylorSeerError
    ├── ConfigError (ValueError)      an argument is wrong; raised where it is given
    │   └── StreamStepError           a named stream is called at a step that does not follow; raised by the call
    ├── StreamLimitError              no room for a further stream; raised where its block is entered, or by a call
    ├── RanksDisagreeError            ranks that share a model are at different steps; raised by the call, on all of them
    ├── NoRegionsError                the graph holds no attention or MLP to forecast; raised when it is compiled
    ├── NothingCompiledError          there is no compiled graph to explain
    └── PassError                     a pass failed, which is a fault of this package
UserWarning
└── TaylorSeerWarning                 something is not accelerated; issued once per backend, with the reason

What is raised while ``torch.compile`` compiles arrives as it is, so that ``except TaylorSeerError`` catches it: Dynamo wraps
other exceptions of a backend in ``torch._dynamo.exc.BackendCompilerFailed``. It adds lines to the text, behind ours.
"""

from typing import Any

from taylorseer_fx.compat import ShortenTraceback


class TaylorSeerError(ShortenTraceback):
    """The base of everything this package raises on purpose. Dynamo lets its own base class pass unwrapped."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, first_useful_frame=None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (type(self), self.args)


def _remade(kind: type[TaylorSeerError], args: tuple[Any, ...]) -> TaylorSeerError:
    """Remake an error from another process, whose text is made already."""
    error = kind.__new__(kind)
    TaylorSeerError.__init__(error, *args)
    return error


class ConfigError(TaylorSeerError, ValueError):
    """An argument is wrong; names it, what it may be, and what it got."""

    def __init__(self, argument: str, allowed: str, got: object, hint: str = "") -> None:
        super().__init__(f"{argument} must be {allowed}, got {got!r}{'. ' + hint if hint else ''}")


class StreamStepError(ConfigError):
    """A call gives a step that does not follow its stream's last. Nothing was executed, and the stream is as before."""

    def __init__(self, stream: str, stands_at: int, step: int) -> None:
        allowed = f"{stands_at + 1}, or 0 to begin a new generation, in the stream {stream!r}, which stands at {stands_at}"
        hint = (
            f"{stands_at} again is for other conditioning only, as in guidance. Give each request, and each call of one step, a "
            f"stream of its own; or free this one before it begins elsewhere, backend.release({stream!r})."
        )
        super().__init__("step", allowed, step, hint)


class StreamLimitError(TaylorSeerError):
    """There is no room for a further stream, by ``max_streams`` or ``total_memory_budget``; the streams held are as before."""


class RanksDisagreeError(TaylorSeerError):
    """Ranks that share a model are at different steps; nothing of the step at hand was computed, and each begins anew."""


class NoRegionsError(TaylorSeerError):
    """Nothing in the compiled graph can be forecast."""


class NothingCompiledError(TaylorSeerError):
    """There is no compiled graph to explain."""


class PassError(TaylorSeerError):
    """A pass failed; the message names it and the passes that ran before, the cause is chained and among the notes."""


class TaylorSeerWarning(UserWarning):
    """Something is not accelerated; the message explains why."""
