"""Exceptions and warnings.

Exception
└── TaylorSeerError
    ├── ConfigError (ValueError)      an argument is wrong; raised where it is given
    └── NoRegionsError                the graph holds no attention or MLP to forecast; raised when it is compiled
UserWarning
└── TaylorSeerWarning                 something is not accelerated; said once a backend, with the reason
"""


class TaylorSeerError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(TaylorSeerError, ValueError):
    """Names the argument, what it may be, what it got."""

    def __init__(self, argument: str, allowed: str, got: object, hint: str = "") -> None:
        super().__init__(f"{argument} must be {allowed}, got {got!r}{'. ' + hint if hint else ''}")


class NoRegionsError(TaylorSeerError, RuntimeError):
    """Nothing in the compiled graph can be forecast."""


class TaylorSeerWarning(UserWarning):
    """Something is not accelerated, and why."""
