"""A short test of an installation: a tiny Diffusion Transformer is compiled, run, and compared with an eager reference.

No code is taken from the caches on disk, so that the compiler is really called. Which vector instructions the CPU has is: torch
finds that out by compiling ten small files, once per cache.
"""

import math
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taylorseer_fx.backend import Stats, TaylorSeerBackend
from taylorseer_fx.bench.hook_reference import HookReference
from taylorseer_fx.compat import inductor_cache_in, pick_vec_isa
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.doctor.tiny_model import WIDTH, TinyModel
from taylorseer_fx.runtime.schedule import Schedule

NUM_STEPS = 8
CONFIG = BackendConfig(order=1, interval=3, warmup=2)
TOLERANCE = 1e-3  # of the largest number in the reference; float32 rounding is a thousandth of it
NUM_TOKENS = 32


@dataclass(frozen=True)
class SelfTest:
    """The result. ``problem``: why nothing could be compared, "" if it could; ``warnings``: those issued meanwhile, each once."""

    device: str
    schedule: str
    stats: Stats
    error: float
    seconds: float
    problem: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def is_as_scheduled(self) -> bool:
        """Were as many steps forecast as should be?"""
        wanted = self.schedule.count("F"), self.schedule.count("T")
        return (self.stats.full_calls, self.stats.forecast_calls) == wanted

    @property
    def passed(self) -> bool:
        return not self.problem and self.is_as_scheduled and self.error <= TOLERANCE


def run_self_test(device: str) -> SelfTest:
    """Test on ``device``; whatever fails is reported in the result, not raised."""
    backend, error, problem = TaylorSeerBackend(CONFIG), math.nan, ""
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as said, torch.no_grad():
        warnings.simplefilter("always")
        try:
            error = _difference(backend, device)
        except Exception as failure:
            problem = f"{type(failure).__name__}: {failure}"
    return SelfTest(
        device=device,
        schedule=Schedule(CONFIG.interval, CONFIG.warmup).describe(NUM_STEPS),
        stats=backend.stats(),
        error=error,
        seconds=time.perf_counter() - began,
        problem=problem,
        warnings=tuple(dict.fromkeys(f"{each.category.__name__}: {each.message}" for each in said)),
    )


def _difference(backend: TaylorSeerBackend, device: str) -> float:
    """The largest difference from the reference in a run, as a part of the largest number there."""
    model = _model().to(device)
    reference = HookReference(model, [model.attention, model.mlp], CONFIG.order, CONFIG.interval, CONFIG.warmup)
    wanted = [reference(step, _inputs(step, device)) for step in range(NUM_STEPS)]
    return _largest_error(_outputs(model, backend, device), wanted)


def _model() -> TinyModel:
    """The model, as it is initialised."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return TinyModel().eval().requires_grad_(False)


def _outputs(model: TinyModel, backend: TaylorSeerBackend, device: str) -> list[Tensor]:
    compiled: Any = torch.compile(model, backend=backend)
    if CONFIG.compiler == "inductor" and device == "cpu":
        pick_vec_isa()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, inductor_cache_in(folder):
        return [compiled(**_inputs(step, device)).clone() for step in range(NUM_STEPS)]


def _inputs(step: int, device: str) -> dict[str, Any]:
    """Latents that move from step to step, as in a denoising loop."""
    first, direction = torch.randn(2, 2, NUM_TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    return {
        "latents": (first + 0.1 * step * direction).to(device),
        "timestep": torch.full((2,), 980.0 - 120 * step, device=device),
    }


def _largest_error(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """NaN where anything is no number."""
    errors = torch.stack([(ours - theirs).abs().max() for ours, theirs in zip(outputs, wanted, strict=True)])
    return float(errors.max() / torch.stack([each.abs().max() for each in wanted]).max())
