"""The calling convention of compiled code: one list, which it empties, so that inputs are freed as soon as they are read."""

from collections.abc import Callable, Sequence
from typing import Any

BoxedCallable = Callable[[list[Any]], Sequence[Any]]
