"""Exceptions and warnings.

RuntimeError
└── TaylorSeerError
    ├── ConfigError (ValueError)      an argument is wrong; raised where it is given
    ├── NoRegionsError                the graph holds no attention or MLP to forecast; raised when it is compiled
    ├── NothingCompiledError          there is no compiled graph to tell about
    └── PassError                     a pass failed, which is a fault of this package
UserWarning
└── TaylorSeerWarning                 something is not accelerated; said once a backend, with the reason

What is raised while ``torch.compile`` compiles arrives as it is, so that ``except TaylorSeerError`` catches it: Dynamo wraps
other exceptions of a backend in ``torch._dynamo.exc.BackendCompilerFailed``. It adds lines to the text, behind ours.
"""

from typing import Any

from taylorseer_fx.compat import ShortenTraceback


class TaylorSeerError(ShortenTraceback):
    """Base of everything this package raises on purpose. Of the base above it: Dynamo lets it pass."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, first_useful_frame=None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (type(self), self.args)


def _remade(kind: type[TaylorSeerError], args: tuple[Any, ...]) -> TaylorSeerError:
    """From another process: the text is made already."""
    error = kind.__new__(kind)
    TaylorSeerError.__init__(error, *args)
    return error


class ConfigError(TaylorSeerError, ValueError):
    """Names the argument, what it may be, what it got."""

    def __init__(self, argument: str, allowed: str, got: object, hint: str = "") -> None:
        super().__init__(f"{argument} must be {allowed}, got {got!r}{'. ' + hint if hint else ''}")


class NoRegionsError(TaylorSeerError):
    """Nothing in the compiled graph can be forecast."""


class NothingCompiledError(TaylorSeerError):
    """There is no compiled graph to tell about."""


class PassError(TaylorSeerError):
    """A pass failed; the message names it and the passes that ran before, the cause is chained and among the notes."""


class TaylorSeerWarning(UserWarning):
    """Something is not accelerated, and why."""
