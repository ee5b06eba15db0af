"""The method once more, written from the paper with forward hooks: the eager model that every compiled one is measured against.

Nothing of the package is used here (a test reads this file to make sure), so that a mistake cannot be on both sides.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from math import factorial
from typing import Any

import torch
from torch import Tensor, nn

Differences = list[Tensor]  # of one feature: D0, D1, ... as far as they exist


@dataclass
class StreamRecord:
    """One stream: its latest full step, and the differences of every output of every module."""

    last_full: int = 0
    differences: dict[nn.Module, list[Differences]] = field(default_factory=dict)
    returned: dict[nn.Module, Any] = field(default_factory=dict)  # what modules returned, without storage


class HookReference:
    """Runs a model eagerly; on forecast steps hooks replace what the feature modules returned.

    A forecast step runs the modules all the same and throws the result away: slow and simple. With ``idle_modules`` it does not:
    neither the feature modules are called then, nor these, which return zeros that nobody should read. For an explicit list of
    full steps the warm-up of the start-up rule is the leading run of full steps.
    """

    def __init__(
        self,
        model: nn.Module,
        feature_modules: Sequence[nn.Module],
        order: int,
        interval: int = 5,
        warmup: int = 3,
        full_steps: Sequence[int] | None = None,
        idle_modules: Sequence[nn.Module] | None = None,
    ) -> None:
        self.model: Callable[..., Any] = model
        self.modules, self.order = feature_modules, order
        self.idle_modules = idle_modules
        self.interval, self.warmup, self.full_steps = interval, warmup, full_steps
        if full_steps is not None:
            self.warmup = len(list(takewhile(lambda pair: pair[0] == pair[1], enumerate(full_steps))))
        self.streams: dict[Any, StreamRecord] = {}

    def is_full(self, step: int) -> bool:
        if self.full_steps is not None:
            return step in self.full_steps
        return step in range(self.warmup) or step in range(self.warmup - 1, step + 1, self.interval)

    @torch.no_grad()
    def __call__(self, step: int, inputs: dict[str, Any], stream: Any = None) -> Tensor:
        """The model's output at a step; step 0 begins a new generation of its stream."""
        if step == 0:
            self.streams[stream] = StreamRecord()
        record, full = self.streams[stream], self.is_full(step)

        def hook(module: nn.Module, _args: Any, output: Any) -> Any:
            values = output if isinstance(output, tuple) else (output,)
            if full:
                old = record.differences.get(module, [[] for _ in values])
                new = [self._update(value, before, step, record.last_full) for value, before in zip(values, old, strict=True)]
                record.differences[module] = new
                return output
            known = record.differences[module]
            forecast = tuple(self._forecast(d, step - record.last_full).to(values[0].dtype) for d in known)
            return forecast if isinstance(output, tuple) else forecast[0]

        with self._hooked(hook, record, full):
            output = self.model(**inputs)
        if full:
            record.last_full = step
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    @contextmanager
    def _hooked(self, hook: Callable[..., Any], record: StreamRecord, full: bool) -> Iterator[None]:
        if self.idle_modules is not None and not full:
            with self._uncalled(hook, record):
                yield
            return
        handles = [module.register_forward_hook(hook) for module in self.modules]
        if self.idle_modules is not None:
            remember = partial(self._remember, record)
            handles += [module.register_forward_hook(remember) for module in (*self.modules, *self.idle_modules)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def _remember(record: StreamRecord, module: nn.Module, _args: Any, output: Any) -> None:
        values = output if isinstance(output, tuple) else (output,)
        without_storage = tuple(torch.empty_like(value, device="meta") for value in values)
        record.returned[module] = without_storage if isinstance(output, tuple) else without_storage[0]

    @contextmanager
    def _uncalled(self, hook: Callable[..., Any], record: StreamRecord) -> Iterator[None]:
        modules = (*self.modules, *(self.idle_modules or ()))
        device = next(iter(record.differences.values()))[0][0].device
        for module in modules:
            module.forward = partial(_uncalled_forward, module, hook, record, module in self.modules, device)
        try:
            yield
        finally:
            for module in modules:
                del module.forward

    def _update(self, feature: Tensor, old: Differences, step: int, last_full: int) -> Differences:
        """D0 is the feature; D(i+1) is how much Di changed a step, formed once Di existed before and the start-up is over."""
        new = [feature.to(torch.promote_types(feature.dtype, torch.float32), copy=True)]
        for before in old[: self.order]:
            if not step > self.warmup - 2:
                break
            new.append((new[-1] - before) / (step - last_full))
        return new

    def _forecast(self, known: Differences, distance: int) -> Tensor:
        return sum((d * (distance**i / factorial(i)) for i, d in enumerate(known)), start=torch.zeros(()))


def _uncalled_forward(
    module: nn.Module,
    hook: Callable[..., Any],
    record: StreamRecord,
    is_feature: bool,
    device: torch.device,
    *args: Any,
    **_: Any,
) -> Any:
    """In place of ``module.forward``: the forecast, or zeros."""
    output = record.returned[module]
    if is_feature:
        return hook(module, args, output)
    if isinstance(output, tuple):
        return tuple(torch.zeros_like(value, device=device) for value in output)
    return torch.zeros_like(output, device=device)
