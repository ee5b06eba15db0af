"""taylorseer_fx, attached to the pipeline as the README shows."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from taylorseer_fx.bench.running import Case, Runner
from taylorseer_fx.entry import taylorseer_backend


@dataclass(frozen=True)
class Ours:
    """Compiled by our backend. ``compiler`` "eager" is for tests.

    The full steps are those of the case, or by the paper's ``interval`` and its warm-up of 3, or as ``speedup`` places them.
    """

    order: int = 1
    granularity: str = "module"
    compiler: str = "inductor"
    interval: int | None = None
    speedup: float | None = None
    compiled = True
    caches = True
    counted_as = None

    @property
    def name(self) -> str:
        return f"ours, {self.granularity}, order {self.order}{self._where}"

    @property
    def family(self) -> str:
        return f"ours, {self.granularity}{', by speedup' if self.speedup else ', by interval' if self.interval else ''}"

    @property
    def note(self) -> str:
        return "the paper's schedule" if self.interval else "growing gaps" if self.speedup else ""

    @property
    def _where(self) -> str:
        return f", interval {self.interval}" if self.interval else f", speedup {self.speedup:g}" if self.speedup else ""

    def _settings(self, case: Case) -> dict[str, Any]:
        if self.speedup is not None:
            return {"speedup": self.speedup}
        return {"interval": self.interval} if self.interval is not None else {"full_steps": case.full_steps}

    def prepare(self, case: Case) -> Runner:
        settings = self._settings(case)
        backend = taylorseer_backend(self.order, granularity=self.granularity, compiler=self.compiler, **settings)
        pipe = case.pipeline()
        compile_model: Any = partial(torch.compile, backend=backend)
        pipe.transformer = compile_model(pipe.transformer)
        backend.attach(pipe)
        return Runner(case, pipe, case.num_steps, backend)
