"""Generate the same pictures from the same noise eagerly, with plain ``torch.compile``, and with forecasting; time every step.

The page (``taylorseer_fx.app``) takes all but the three ways themselves from here.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache

from taylorseer_fx.backend import TaylorSeerBackend
from taylorseer_fx.entry import taylorseer_backend
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.shipped import DIGITS, NUM_CLASSES, SHIPPED, Shipped

Denoiser = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Generation:
    """What is generated: ``rows`` pictures of each class, from the noise of ``seed``."""

    model: Shipped = DIGITS
    num_steps: int = 50
    rows: int = 6
    guidance: float = 2.0
    seed: int = 0

    @property
    def labels(self) -> Tensor:
        return torch.arange(NUM_CLASSES).repeat(self.rows)

    def steps(self, denoiser: Denoiser) -> Iterator[Tensor]:
        """The pictures ``[n, 1, side, side]`` after each step."""
        return self.model.denoising_steps(
            denoiser, self.labels, num_steps=self.num_steps, guidance_scale=self.guidance, seed=self.seed
        )


@dataclass(frozen=True)
class DemoConfig(Generation):
    """Size of the demo, and how it forecasts."""

    order: int = 1
    interval: int = 5
    warmup: int = 3

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
    """A denoiser made ready; since ``forget`` the seconds of every call, and which calls were full: all that its backend did not
    count as forecast.
    """

    name: str
    denoiser: Denoiser
    backend: TaylorSeerBackend | None = None
    compile_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    full_steps: list[int] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        before, started = self._num_forecast(), time.perf_counter()
        result = self.denoiser(*args, **kwargs)
        self.seconds.append(time.perf_counter() - started)
        if self._num_forecast() == before:
            self.full_steps.append(len(self.seconds) - 1)
        return result

    def _num_forecast(self) -> int:
        return self.backend.stats().forecast_calls if self.backend is not None else 0

    def forget(self) -> None:
        """Begin a run."""
        self.seconds.clear()
        self.full_steps.clear()


def start_compiler() -> None:
    """Compile next to nothing: what Inductor does once per process is nobody's compile time."""
    with fresh_cache():
        torch.compile(lambda x: x + 1)(torch.zeros(64))


def eager(config: DemoConfig) -> Contestant:
    """The model as it is."""
    return _compiled_anew(Contestant("eager", config.model.load()), config)


def compiled(config: DemoConfig) -> Contestant:
    """Plain ``torch.compile``."""
    return _compiled_anew(Contestant("torch.compile", torch.compile(config.model.load())), config)


def forecast(config: DemoConfig) -> Contestant:
    """Ours."""
    backend = config.backend()
    return _compiled_anew(Contestant("taylorseer_fx", torch.compile(config.model.load(), backend=backend), backend), config)


def warm_up(contestant: Contestant, generation: Generation) -> Contestant:
    """Make it call its denoiser twice, of which the first call compiles; ``compile_seconds`` is what that took longer."""
    contestant.forget()
    for _ in replace(generation, num_steps=2).steps(contestant):
        pass
    first, second = contestant.seconds
    contestant.compile_seconds = first - second
    contestant.forget()
    if contestant.backend is not None:
        contestant.backend.reset()
    return contestant


def generate_in_turns(contestants: Sequence[Contestant], generation: Generation, on_step: Callable[[], None]) -> list[Run]:
    """All generate the same pictures, each taking a step in turn, so that a slow spell of the machine falls on all of them."""
    samples: tuple[Tensor, ...] = ()
    for latents in zip(*(generation.steps(contestant) for contestant in contestants), strict=True):
        samples = latents
        on_step()
    return [_run(contestant, images) for contestant, images in zip(contestants, samples, strict=True)]


def _run(contestant: Contestant, samples: Tensor) -> Run:
    return Run(
        name=contestant.name,
        samples=samples,
        step_seconds=tuple(contestant.seconds),
        full_steps=tuple(contestant.full_steps),
        compile_seconds=contestant.compile_seconds,
        buffer_bytes=contestant.backend.stats().buffer_bytes if contestant.backend is not None else 0,
    )


def _compiled_anew(contestant: Contestant, config: DemoConfig) -> Contestant:
    """For real, with empty caches, also when the demo ran before."""
    with fresh_cache():
        return warm_up(contestant, config)
