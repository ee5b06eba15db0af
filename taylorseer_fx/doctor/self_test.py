"""A short test of an installation: a tiny Diffusion Transformer is compiled, run, and compared with an eager reference.

Nothing is taken from torch's caches on disk, so that the compiler is really called.
"""

import math
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taylorseer_fx.backend import Stats, TaylorSeerBackend
from taylorseer_fx.bench.hook_reference import HookReference
from taylorseer_fx.bench.models import dit
from taylorseer_fx.compat import inductor_cache_in
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.runtime.schedule import Schedule

NUM_STEPS = 8
CONFIG = BackendConfig(order=1, interval=3, warmup=2)
TOLERANCE = 1e-3  # of the largest number in the reference; float32 rounding is a thousandth of it
SIZE = 8  # latents, in each direction


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
    blocks: Any = model.transformer_blocks
    features = [module for block in blocks for module in (block.attn1, block.ff)]
    reference = HookReference(model, features, CONFIG.order, CONFIG.interval, CONFIG.warmup)
    wanted = [reference(step, _inputs(step, device)) for step in range(NUM_STEPS)]
    return _largest_error(_outputs(model, backend, device), wanted)


def _model() -> nn.Module:
    """One block of width 16, as it is initialised."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model: nn.Module = dit(num_layers=1, num_heads=2, head_dim=8, sample_size=SIZE)
    return model.eval().requires_grad_(False)


def _outputs(model: nn.Module, backend: TaylorSeerBackend, device: str) -> list[Tensor]:
    compiled: Any = torch.compile(model, backend=backend)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, inductor_cache_in(folder):
        return [compiled(**_inputs(step, device))[0].clone() for step in range(NUM_STEPS)]


def _inputs(step: int, device: str) -> dict[str, Any]:
    """Latents that move from step to step, as in a denoising loop."""
    first, direction = torch.randn(2, 2, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return {
        "hidden_states": (first + 0.1 * step * direction).to(device),
        "timestep": torch.full((2,), 980 - 120 * step, device=device),
        "class_labels": torch.tensor([1, 2], device=device),
        "return_dict": False,
    }


def _largest_error(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """NaN where anything is no number."""
    errors = torch.stack([(ours - theirs).abs().max() for ours, theirs in zip(outputs, wanted, strict=True)])
    return float(errors.max() / torch.stack([each.abs().max() for each in wanted]).max())
