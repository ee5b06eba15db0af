"""``taylorseer-fx sample``: many pictures of a shipped model, drawn by workers of Ray."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from taylorseer_fx.config import BackendConfig
from taylorseer_fx.ray.fleet import Summary, sample
from taylorseer_fx.ray.sampler import must_be_at_least
from taylorseer_fx.ray.shipped import ShippedBuild, labelled


@dataclass(frozen=True)
class Job:
    """What to draw, and with what; ``speedup`` 1 is every step in full."""

    model: str
    count: int
    workers: int
    num_steps: int = 50
    speedup: float = 3.0
    order: int = 1
    granularity: str = "module"
    guidance: float = 2.0
    seed: int = 0
    batch_size: int = 50
    files: str = "parquet"
    compiler: str = "inductor"

    @property
    def backend_settings(self) -> dict[str, Any]:
        """As ``taylorseer_backend`` takes them."""
        schedule: Mapping[str, Any] = {"speedup": self.speedup, "num_steps": self.num_steps}
        return {"order": self.order, "granularity": self.granularity, "compiler": self.compiler, **schedule}


def run_sample(job: Job, out: Path, console: Console, address: str | None = None) -> None:
    """Draw, with a bar on ``console``, and print what was done.

    Raises:
        ConfigError: a setting is out of its range, ``out`` holds another run, or no cluster is at ``address``.
    """
    must_be_at_least(1, count=job.count, workers=job.workers, steps=job.num_steps)
    BackendConfig.from_options(job.backend_settings)  # here, rather than in a worker
    build = ShippedBuild(job.model, job.num_steps, job.guidance, job.backend_settings, as_bytes=job.files == "png")
    kept = {name: value for name, value in asdict(job).items() if name not in ("count", "workers", "seed", "batch_size", "files")}
    with _bar(console) as bar:
        task = bar.add_task("starting workers", total=job.count)
        done = sample(
            build,
            labelled(job.count),
            out,
            workers=job.workers,
            batch_size=job.batch_size,
            seed=job.seed,
            files=job.files,
            settings=kept,
            address=address,
            on_rows=lambda finished: bar.update(task, completed=finished, description="pictures"),
        )
    _print(done, out, console)


def _bar(console: Console) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def _print(done: Summary, out: Path, console: Console) -> None:
    drawn = done.num_rows - done.num_found
    found = f", {done.num_found} were there already" if done.num_found else ""
    console.print(f"drawn     {drawn} pictures in {done.seconds:.1f} s{found}", highlight=False)
    for worker in done.workers:
        how = "compiled" if worker.cache_misses else "found in the cache" if worker.cache_hits else "compiled without a cache"
        console.print(f"worker    {worker.process}: first batch {worker.first_call_seconds:.1f} s, {how}", highlight=False)
    console.print(f"pictures  {out}", highlight=False)
