"""A denoising loop with the real scheduler, timed as a whole and step by step without a wait inside."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.cases import Subject

Enter = Callable[[int], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Loop:
    """Seconds of one run: in all, and of the model in each step on the device."""

    total: float
    steps: tuple[float, ...]


class Stopwatch:
    """Marks on a device, read once all is done: CUDA events, or the host's clock where work is done when a call returns."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def spans(self) -> tuple[float, ...]:
        """Seconds between the marks of each pair."""
        pairs = zip(self.marks[::2], self.marks[1::2], strict=True)
        return tuple(a.elapsed_time(b) / 1e3 if self.is_cuda else b - a for a, b in pairs)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_loop(subject: Subject, denoiser: Callable[..., Any], num_steps: int, enter: Enter = lambda _: nullcontext()) -> Loop:
    """From noise to the end; ``enter(step)`` is the context of each call."""
    scheduler, latents, device = subject.case.scheduler(num_steps), subject.latents, subject.latents.device
    times, timesteps, stopwatch = subject.times(scheduler), scheduler.timesteps.tolist(), Stopwatch(device)
    synchronize(device)
    started = time.perf_counter()
    with torch.inference_mode():
        for step in range(num_steps):
            stopwatch.mark()
            with enter(step):
                noise = subject.call(denoiser, latents, times[step])
            stopwatch.mark()
            latents = scheduler.step(noise, timesteps[step], latents, return_dict=False)[0].to(latents.dtype)
    synchronize(device)
    return Loop(time.perf_counter() - started, stopwatch.spans())


def host_seconds(subject: Subject, denoiser: Callable[..., Any], num_steps: int, enter: Enter) -> tuple[float, ...]:
    """What each call takes the host, with nothing queued on the device before it."""
    scheduler, device = subject.case.scheduler(num_steps), subject.latents.device
    seconds = []
    with torch.inference_mode():
        for step, when in enumerate(subject.times(scheduler)):
            synchronize(device)
            started = time.perf_counter()
            with enter(step):
                subject.call(denoiser, subject.latents, when)
            seconds.append(time.perf_counter() - started)
    synchronize(device)
    return tuple(seconds)


def copy_bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes read and written a second by the best of ten copies."""
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    stopwatch = Stopwatch(device)
    for _ in range(10):
        stopwatch.mark()
        target.copy_(source)
        stopwatch.mark()
    synchronize(device)
    return 2 * source.nbytes / min(stopwatch.spans())
