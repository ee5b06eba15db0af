"""Generate the same digits from the same noise eagerly, with plain ``torch.compile``, and with forecasting; time every step."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from taylorseer_fx.backend import TaylorSeerBackend, taylorseer_backend
from taylorseer_fx.digits import NUM_CLASSES, load_digits_model, sample_digits
from taylorseer_fx.digits.sampling import Denoiser

Track = Callable[[str, Iterable[Tensor]], Iterable[Tensor]]


@dataclass(frozen=True)
class DemoConfig:
    """Size of the demo: ``rows`` pictures of each class."""

    num_steps: int = 50
    rows: int = 6
    order: int = 1
    interval: int = 5
    warmup: int = 3

    @property
    def labels(self) -> Tensor:
        return torch.arange(NUM_CLASSES).repeat(self.rows)

    def backend(self) -> TaylorSeerBackend:
        return taylorseer_backend(self.order, self.interval, self.warmup)


@dataclass(frozen=True)
class Run:
    """One way of generating: the pictures ``[n, 1, 8, 8]`` and the seconds of every step."""

    name: str
    samples: Tensor
    step_seconds: tuple[float, ...]
    full_steps: tuple[int, ...]
    compile_seconds: float = 0.0
    buffer_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Of all denoiser calls together."""
        return sum(self.step_seconds)

    @property
    def full_step_seconds(self) -> float:
        """Median of the full steps."""
        return statistics.median(self.step_seconds[i] for i in self.full_steps)

    @property
    def forecast_step_seconds(self) -> float | None:
        """Median of the forecast steps; None where every step is full."""
        full = set(self.full_steps)
        forecast = [seconds for i, seconds in enumerate(self.step_seconds) if i not in full]
        return statistics.median(forecast) if forecast else None

    @property
    def ceiling(self) -> float:
        """Steps over full steps: the speed-up if a forecast step cost nothing."""
        return len(self.step_seconds) / len(self.full_steps)


@dataclass
class _Stopwatch:
    """Wraps a denoiser and notes the seconds of every call."""

    denoiser: Denoiser
    seconds: list[float] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        started = time.perf_counter()
        result = self.denoiser(*args, **kwargs)
        self.seconds.append(time.perf_counter() - started)
        return result


def run_eager(config: DemoConfig, track: Track) -> Run:
    model = load_digits_model()
    _first_call(model, config)
    return _generate("eager", model, config, track, range(config.num_steps))


def run_compiled(config: DemoConfig, track: Track) -> Run:
    with _cold_caches():
        compiled = torch.compile(load_digits_model())
        compile_seconds = _first_call(compiled, config)
        return _generate("torch.compile", compiled, config, track, range(config.num_steps), compile_seconds)


def run_forecast(config: DemoConfig, track: Track) -> tuple[Run, TaylorSeerBackend]:
    with _cold_caches():
        backend = config.backend()
        compiled = torch.compile(load_digits_model(), backend=backend)
        compile_seconds = _first_call(compiled, config)
        backend.reset()
        full_steps = backend.config.schedule.full_steps_of(config.num_steps)
        run = _generate("taylorseer_fx", compiled, config, track, full_steps, compile_seconds, backend)
    return run, backend


def _generate(
    name: str,
    denoiser: Denoiser,
    config: DemoConfig,
    track: Track,
    full_steps: Iterable[int],
    compile_seconds: float = 0.0,
    backend: TaylorSeerBackend | None = None,
) -> Run:
    watch = _Stopwatch(denoiser)
    samples = sample_digits(watch, config.labels, num_steps=config.num_steps, progress=lambda timesteps: track(name, timesteps))
    buffer_bytes = backend.stats().buffer_bytes if backend is not None else 0
    return Run(name, samples, tuple(watch.seconds), tuple(full_steps), compile_seconds, buffer_bytes)


def _first_call(denoiser: Denoiser, config: DemoConfig) -> float:
    """Seconds of the first call, which compiles, less those of the second."""
    watch = _Stopwatch(denoiser)
    sample_digits(watch, config.labels, num_steps=2)
    return watch.seconds[0] - watch.seconds[1]


def _cold_caches() -> Any:
    """Compile for real, also when the demo ran before, and take nothing over from one way to the next."""
    from torch._inductor.utils import fresh_cache

    torch.compiler.reset()
    return fresh_cache()
