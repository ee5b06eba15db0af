"""Comparisons that nothing was run for, to look at what the page makes of them."""

import torch
from torch import Tensor

from taylorseer_fx.app.runs import Comparison, Forecast
from taylorseer_fx.app.settings import Setting
from taylorseer_fx.demo.runs import Generation, Run

LISTED = Setting(schedule={"full_steps": (0, 1, 4)})


def blank() -> Tensor:
    """Twenty pictures of four pixels."""
    return torch.full((20, 1, 2, 2), -1.0)


def made(psnr_db: float = 33.25, notes: tuple[str, ...] = (), names: str = "A") -> Comparison:
    """Runs of four steps with known seconds; all of ``names`` are alike."""
    full = Run("full", blank(), (0.1,) * 4, (0, 1, 2, 3), compile_seconds=12.0)
    run = Run("forecast", blank(), (0.1, 0.01, 0.03, 0.1), (0, 3), compile_seconds=0.0, buffer_bytes=3 * 2**20)
    forecasts = (Forecast(name, LISTED, run, psnr_db, 0.4 / 0.24, notes) for name in names)
    return Comparison(Generation(num_steps=4), "eager", full, tuple(forecasts))
