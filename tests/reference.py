"""The method once more, written from METHOD.md with forward hooks: the eager model that every compiled one is measured against.

Nothing of the package is used here (a test reads this file to make sure), so that a mistake cannot be on both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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


class HookReference:
    """Runs a model eagerly; on forecast steps hooks replace what the feature modules returned.

    A forecast step runs the modules all the same and throws the result away: slow and simple. For an explicit list of full steps
    the warm-up of the start-up rule is the leading run of full steps.
    """

    def __init__(
        self,
        model: nn.Module,
        feature_modules: Sequence[nn.Module],
        order: int,
        interval: int = 5,
        warmup: int = 3,
        full_steps: Sequence[int] | None = None,
    ) -> None:
        self.model, self.modules, self.order = model, feature_modules, order
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

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            values = output if isinstance(output, tuple) else (output,)
            if full:
                old = record.differences.get(module, [[] for _ in values])
                new = [self._update(value, before, step, record.last_full) for value, before in zip(values, old, strict=True)]
                record.differences[module] = new
                return output
            known = record.differences[module]
            forecast = tuple(self._forecast(d, step - record.last_full).to(values[0].dtype) for d in known)
            return forecast if isinstance(output, tuple) else forecast[0]

        handles = [module.register_forward_hook(hook) for module in self.modules]
        try:
            output = self.model(**inputs)
        finally:
            for handle in handles:
                handle.remove()
        if full:
            record.last_full = step
        return output[0] if isinstance(output, tuple) else output

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
