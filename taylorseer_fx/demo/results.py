"""The demo's measurements, as numbers (for ``--json``) and as cells of a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from taylorseer_fx.demo.quality import psnr
from taylorseer_fx.demo.runs import DemoConfig, Run
from taylorseer_fx.text import format_bytes

HEADINGS = (  # of the cells of a row
    "",
    "seconds",
    "full step, ms",
    "forecast step, ms",
    "speed-up over eager",
    "speed-up over torch.compile",
    "ceiling (steps / full steps)",
    "compile, s",
    "derivative buffers",
    "PSNR against eager, dB",
    "class accuracy",
)


@dataclass(frozen=True)
class Row:
    """One way of generating. ``psnr_db`` is against eager, ``accuracy`` the share of pictures named as the class asked for."""

    name: str
    seconds: float
    full_step_ms: float
    forecast_step_ms: float | None
    speedup_over_eager: float
    speedup_over_compile: float
    ceiling: float
    compile_seconds: float | None
    buffer_bytes: int
    psnr_db: float | None
    accuracy: float

    def cells(self) -> tuple[str, ...]:
        return (
            self.name,
            f"{self.seconds:.2f}",
            f"{self.full_step_ms:.1f}",
            "-" if self.forecast_step_ms is None else f"{self.forecast_step_ms:.1f}",
            f"{self.speedup_over_eager:.2f}x",
            f"{self.speedup_over_compile:.2f}x",
            f"{self.ceiling:.2f}x",
            "-" if self.compile_seconds is None else f"{self.compile_seconds:.1f}",
            format_bytes(self.buffer_bytes) if self.buffer_bytes else "-",
            "-" if self.psnr_db is None else f"{self.psnr_db:.1f}",
            f"{self.accuracy:.1%}",
        )


def measure(runs: Sequence[Run], config: DemoConfig) -> list[Row]:
    """A row for each run; the first is eager, the second plain ``torch.compile``."""
    eager, compiled = runs[:2]
    judge = config.model.judge()
    return [
        Row(
            name=run.name,
            seconds=run.seconds,
            full_step_ms=run.full_step_seconds * 1e3,
            forecast_step_ms=None if run.forecast_step_seconds is None else run.forecast_step_seconds * 1e3,
            speedup_over_eager=eager.seconds / run.seconds,
            speedup_over_compile=compiled.seconds / run.seconds,
            ceiling=run.ceiling,
            compile_seconds=None if run is eager else run.compile_seconds,
            buffer_bytes=run.buffer_bytes,
            psnr_db=None if run is eager else psnr(run.samples, eager.samples),
            accuracy=judge.accuracy(run.samples, config.labels),
        )
        for run in runs
    ]
