"""Generate the same pictures from the same noise eagerly, with plain ``torch.compile``, and with forecasting; time every step."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache

from taylorseer_fx.backend import TaylorSeerBackend, taylorseer_backend
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.shipped import DIGITS, NUM_CLASSES, SHIPPED, Shipped

Denoiser = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class DemoConfig:
    """Size of the demo: ``rows`` pictures of each class."""

    model: Shipped = DIGITS
    num_steps: int = 50
    rows: int = 6
    order: int = 1
    interval: int = 5
    warmup: int = 3

    @property
    def labels(self) -> Tensor:
        return torch.arange(NUM_CLASSES).repeat(self.rows)

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.interval, self.warmup)

    def backend(self) -> TaylorSeerBackend:
        return taylorseer_backend(self.order, self.interval, self.warmup)


def demo_config(model: str, quick: bool = False) -> DemoConfig:
    """The demo of a shipped model: a row or two of pictures if it is the larger one, or if it is to be quick."""
    rows = 6 if SHIPPED[model] is DIGITS else 2
    return DemoConfig(SHIPPED[model], num_steps=20, rows=1) if quick else DemoConfig(SHIPPED[model], rows=rows)


@dataclass(frozen=True)
class Run:
    """One way of generating: the pictures ``[n, 1, side, side]`` and the seconds of every step."""

    name: str
    samples: Tensor
    step_seconds: tuple[float, ...]
    full_steps: tuple[int, ...]
    compile_seconds: float = 0.0
    buffer_bytes: int = 0

    @property
    def seconds(self) -> float:
        """The seconds of all denoiser calls together."""
        return sum(self.step_seconds)

    @property
    def full_step_seconds(self) -> float:
        """The median of the full steps."""
        return statistics.median(self.step_seconds[i] for i in self.full_steps)

    @property
    def forecast_step_seconds(self) -> float | None:
        """The median of the forecast steps; None where every step is full."""
        full = set(self.full_steps)
        forecast = [seconds for i, seconds in enumerate(self.step_seconds) if i not in full]
        return statistics.median(forecast) if forecast else None

    @property
    def ceiling(self) -> float:
        """Steps over full steps: the speed-up if a forecast step cost nothing."""
        return len(self.step_seconds) / len(self.full_steps)


@dataclass
class Contestant:
    """A denoiser made ready, and the seconds of every call since."""

    name: str
    denoiser: Denoiser
    full_steps: tuple[int, ...]
    backend: TaylorSeerBackend | None = None
    compile_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        started = time.perf_counter()
        result = self.denoiser(*args, **kwargs)
        self.seconds.append(time.perf_counter() - started)
        return result


def start_compiler() -> None:
    """Compile next to nothing: what Inductor does once per process is nobody's compile time."""
    with fresh_cache():
        torch.compile(lambda x: x + 1)(torch.zeros(64))


def eager(config: DemoConfig) -> Contestant:
    """The model as it is."""
    return _warmed_up(Contestant("eager", config.model.load(), tuple(range(config.num_steps))), config)


def compiled(config: DemoConfig) -> Contestant:
    """Plain ``torch.compile``."""
    return _warmed_up(Contestant("torch.compile", torch.compile(config.model.load()), tuple(range(config.num_steps))), config)


def forecast(config: DemoConfig) -> Contestant:
    """Ours."""
    backend = config.backend()
    full_steps = config.schedule.full_steps_of(config.num_steps)
    model = torch.compile(config.model.load(), backend=backend)
    return _warmed_up(Contestant("taylorseer_fx", model, tuple(full_steps), backend), config)


def generate_in_turns(contestants: Sequence[Contestant], config: DemoConfig, on_step: Callable[[], None]) -> list[Run]:
    """All generate the same pictures, each taking a step in turn, so that a slow spell of the machine falls on all of them."""
    loops = [config.model.denoising_steps(contestant, config.labels, num_steps=config.num_steps) for contestant in contestants]
    samples: tuple[Tensor, ...] = ()
    for latents in zip(*loops, strict=True):
        samples = latents
        on_step()
    return [_run(contestant, images) for contestant, images in zip(contestants, samples, strict=True)]


def _run(contestant: Contestant, samples: Tensor) -> Run:
    return Run(
        name=contestant.name,
        samples=samples,
        step_seconds=tuple(contestant.seconds),
        full_steps=contestant.full_steps,
        compile_seconds=contestant.compile_seconds,
        buffer_bytes=contestant.backend.stats().buffer_bytes if contestant.backend is not None else 0,
    )


def _warmed_up(contestant: Contestant, config: DemoConfig) -> Contestant:
    """Two calls, of which the first compiles: for real, with empty caches, also when the demo ran before."""
    with fresh_cache():
        config.model.sample(contestant, config.labels, num_steps=2)
    first, second = contestant.seconds
    contestant.compile_seconds = first - second
    contestant.seconds.clear()
    if contestant.backend is not None:
        contestant.backend.reset()
    return contestant
