"""Both granularities of a model from one trace: tracing is what takes the time in a test."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from taylorseer_fx import TaylorSeerBackend
from taylorseer_fx.config import BackendConfig


@dataclass(frozen=True)
class Call:
    """What a call of a graph returned at either granularity, and whether the stack was executed."""

    was_full: bool
    modules: list[Tensor]
    stack: list[Tensor]


class BothBackend(TaylorSeerBackend):
    """A backend at module granularity that runs another beside it, ``stack``, on what it traces and is called with."""

    def __init__(self, config: BackendConfig) -> None:
        super().__init__(config)
        self.stack = TaylorSeerBackend(replace(config, granularity="stack"))
        self._calls: list[Call] = []

    def take_calls(self) -> list[Call]:
        """The calls since this was last asked."""
        calls, self._calls = self._calls, []
        return calls

    @contextmanager
    def stream(self, name: str, *, step: int | None = None) -> Iterator[None]:
        with super().stream(name, step=step), self.stack.stream(name, step=step):
            yield

    def _compile_traced(self, origin: Any, tag: Any, *traced: Any) -> Any:
        self._stack_steps = self.stack._compile_traced(origin, tag, *traced).steps
        return super()._compile_traced(origin, tag, *traced)

    def _install(self, origin: Any, steps: Any) -> Any:
        stack, modules = self.stack._install(origin, self._stack_steps), super()._install(origin, steps)

        def run(args: list[Any]) -> Sequence[Any]:
            forecast_before = self.stack.stats().forecast_calls
            of_stack = stack(list(args))
            of_modules = modules(args)
            was_full = self.stack.stats().forecast_calls == forecast_before
            self._calls.append(Call(was_full, _tensors(of_modules), _tensors(of_stack)))
            return of_modules

        run._boxed_call = True  # type: ignore[attr-defined]
        return run


def _tensors(outputs: Sequence[Any]) -> list[Tensor]:
    """Those that could be forecast: not the masks and indices that go from one graph of a broken model to the next."""
    tensors = (output for output in outputs if isinstance(output, Tensor))
    return [tensor.clone() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
