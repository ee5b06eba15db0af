"""The two trained models, and runs of them by any schedule, order and forecaster, each compiled once."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taylorseer_fx import TaylorSeerBackend, taylorseer_backend
from taylorseer_fx.runtime.placement import AnySchedule
from taylorseer_fx.shipped import DIGITS, FASHION, NUM_CLASSES, Shipped
from taylorseer_fx.trials import IN_FULL, trying

MAX_ORDER = 3

SUBJECTS = (DIGITS, FASHION)


@dataclass(frozen=True)
class Noise:
    """Starting noise by its seed, and the classes that are drawn from it in turn."""

    seed: int
    classes: tuple[int, ...] = tuple(range(NUM_CLASSES))
    count: int = 20

    @property
    def labels(self) -> Tensor:
        return torch.tensor(self.classes).repeat(self.count // len(self.classes))


@dataclass
class Compiled:
    """A subject compiled for a granularity, with buffers for all orders; ``compiler`` "eager" is for tests."""

    subject: Shipped
    granularity: str
    compiler: str = "inductor"
    backend: TaylorSeerBackend = field(init=False)
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        torch.compiler.reset()
        self.backend = taylorseer_backend(MAX_ORDER, granularity=self.granularity, compiler=self.compiler, full_steps=[0])
        self.model = torch.compile(self.subject.load().requires_grad_(False), backend=self.backend, dynamic=False)

    def draw(
        self,
        noise: Noise,
        num_steps: int,
        guidance: float,
        schedule: AnySchedule = IN_FULL,
        order: int = 1,
        forecaster: str = "taylor",
    ) -> Tensor:
        """Pictures ``[noise.count, 1, h, w]``, all from ``noise``."""
        with trying(self.backend, schedule, order, forecaster):
            return self.subject.sample(self.model, noise.labels, num_steps=num_steps, guidance_scale=guidance, seed=noise.seed)


def decibels(pictures: Tensor, reference: Tensor) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of each picture, clipped to its range [-1, 1]; at most 100, so that means exist."""
    error = (pictures.clamp(-1, 1) - reference.clamp(-1, 1)).double().square().flatten(1).mean(1).numpy()
    return np.minimum(10 * np.log10(4.0 / np.maximum(error, 1e-30)), 100.0)
