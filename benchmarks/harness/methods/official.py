"""The official recursion as plain eager hooks: what the method costs without a compiler."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from taylorseer_fx.bench.hook_reference import HookReference
from taylorseer_fx.bench.running import Case, Method, Runner


@dataclass(frozen=True)
class OfficialHooks:
    """Attention and MLP are not called on forecast steps; eager, as the official code is."""

    order: int = 1
    family = "official hooks, eager"
    compiled = False
    caches = True
    note = "our own writing of the official code's recursion"

    @property
    def name(self) -> str:
        return f"official hooks, eager, order {self.order}"

    @property
    def counted_as(self) -> Method:
        return self

    def prepare(self, case: Case) -> Runner:
        runner = Runner(case, case.pipeline(), case.num_steps)
        runner.begin = _Hooked(runner.pipe.transformer, case, self.order).begin
        return runner


class _Hooked:
    """Stands before the transformer's ``forward`` and counts steps and streams by the calls."""

    def __init__(self, transformer: nn.Module, case: Case, order: int) -> None:
        self.transformer, self.case, self.order = transformer, case, order
        self.forward = transformer.forward
        self.features = matching(transformer, case.workload.features.cached)
        self.idle = matching(transformer, case.workload.features.idle)
        replaced: Any = transformer
        replaced.forward = self

    def begin(self) -> None:
        """The next call is the first of a run."""
        self.num_calls = 0
        self.reference = HookReference(
            self.transformer, self.features, self.order, full_steps=self.case.full_steps, idle_modules=self.idle
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        step, stream = divmod(self.num_calls, self.case.workload.calls_a_step)
        self.num_calls += 1
        self.reference.model = partial(self.forward, *args)
        output = self.reference(step, kwargs, stream)
        return output if kwargs.get("return_dict", True) else (output,)


def matching(transformer: nn.Module, patterns: Iterable[str]) -> list[nn.Module]:
    """Modules whose whole name matches one of ``patterns``."""
    wanted = [re.compile(pattern) for pattern in patterns]
    return [module for name, module in transformer.named_modules() if any(p.fullmatch(name) for p in wanted)]
