"""How compiled code is called: with one list, which it empties, so that inputs are freed as soon as they were read."""

from collections.abc import Callable, Sequence
from typing import Any

BoxedCallable = Callable[[list[Any]], Sequence[Any]]
