"""taylorseer_fx, attached to the pipeline as the README shows."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from taylorseer_fx.backend import taylorseer_backend
from taylorseer_fx.bench.running import Case, Runner


@dataclass(frozen=True)
class Ours:
    """Compiled by our backend. ``compiler`` "eager" is for tests."""

    order: int = 1
    granularity: str = "module"
    compiler: str = "inductor"
    compiled = True
    caches = True
    counted_as = None
    note = ""

    @property
    def name(self) -> str:
        return f"ours, {self.granularity}, order {self.order}"

    @property
    def family(self) -> str:
        return f"ours, {self.granularity}"

    def prepare(self, case: Case) -> Runner:
        backend = taylorseer_backend(self.order, full_steps=case.full_steps, granularity=self.granularity, compiler=self.compiler)
        pipe = case.pipeline()
        compile_model: Any = partial(torch.compile, backend=backend)
        pipe.transformer = compile_model(pipe.transformer)
        backend.attach(pipe)
        return Runner(case, pipe, case.num_steps, backend)
