"""``taylorseer-fx calibrate``: a plan file for one of the shipped models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from taylorseer_fx.calibration import Calibration, calibrate
from taylorseer_fx.entry import taylorseer_backend
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.judging import Run
from taylorseer_fx.shipped import NUM_CLASSES, SHIPPED

CHOSEN_BY, HELD_OUT = 1, 2  # seeds of the noise


@dataclass(frozen=True)
class Job:
    """The settings of a calibration: ``num_samples`` pictures of ``num_steps`` steps, for each number of ``full_steps``."""

    model: str
    num_steps: int
    full_steps: Sequence[int]
    order: int
    granularity: str
    guidance: float
    num_samples: int
    compiler: str = "inductor"


def run_calibrate(job: Job, out: Path, console: Console) -> None:
    """Calibrate, print a line per run and the table, and write the plan to ``out``.

    Raises:
        ConfigError: a setting is out of its range.
    """
    if job.num_samples < 1:
        raise ConfigError("samples", "at least 1", job.num_samples)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bars:
        task = bars.add_task("compiling, and the run in full", total=None)
        found = _calibrated(job, lambda text: bars.update(task, description=text))
        bars.update(task, total=1, completed=1, description=f"{len(found.trials)} lists were run")
    console.print(_table(found))
    found.plan().save(out)
    console.print(f"plan      {out}   taylorseer_backend(plan={str(out)!r}, speedup=...)", highlight=False)


def _calibrated(job: Job, on_trial: Callable[[str], None]) -> Calibration:
    model = SHIPPED[job.model]
    backend = taylorseer_backend(job.order, full_steps=[0], granularity=job.granularity, compiler=job.compiler)
    denoiser = torch.compile(model.load().requires_grad_(False), backend=backend, dynamic=False)
    labels = torch.arange(job.num_samples) % NUM_CLASSES

    def run_of(seed: int) -> Run:
        def run() -> Tensor:
            pictures = model.sample(denoiser, labels, num_steps=job.num_steps, guidance_scale=job.guidance, seed=seed)
            return pictures.clamp(-1, 1)

        return run

    return calibrate(run_of(CHOSEN_BY), backend, job.num_steps, job.full_steps, held_out=run_of(HELD_OUT), on_trial=on_trial)


def _table(found: Calibration) -> Table:
    """The list chosen for each number of full steps, beside the paper's schedule, on both sets of samples."""
    table = Table("full steps", header_style="bold", box=None, pad_edge=False)
    for name in ("chosen by, dB", "paper's", "held out, dB", "paper's"):
        table.add_column(name, justify="right")
    table.add_column("list")
    for setting in found.settings():
        best, paper = found.best(*setting), found.papers(*setting)
        seen = [f"{each.mean_db:.1f} ({each.worst_db:.1f})" if each is not None else "-" for each in (best, paper)]
        unseen = [
            f"{each.held_out[0]:.1f} ({each.held_out[1]:.1f})" if each is not None and each.held_out is not None else "-"
            for each in (best, paper)
        ]
        table.add_row(str(best.num_full), *seen, *unseen, " ".join(map(str, best.full_steps)))
    table.caption = "mean over samples (worst sample), against the run in full"
    return table
