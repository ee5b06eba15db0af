"""The two trained models of the package, as ``build`` functions of a fleet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from taylorseer_fx.entry import taylorseer_backend
from taylorseer_fx.ray.sampler import Array, Draw
from taylorseer_fx.shipped import NUM_CLASSES, SHIPPED


@dataclass(frozen=True)
class ShippedBuild:
    """Builds a shipped model in a worker. Rows have a ``label``; pictures are float32 ``[n, 1, side, side]`` in [-1, 1], or uint8
    ``[n, side, side]`` if ``as_bytes``.
    """

    model: str
    num_steps: int = 50
    guidance: float = 2.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    as_bytes: bool = False

    def __call__(self) -> Draw:
        model, backend = SHIPPED[self.model], taylorseer_backend(**self.settings)
        denoiser = torch.compile(model.load().requires_grad_(False), backend=backend, dynamic=False)
        settings = {"num_steps": self.num_steps, "guidance_scale": self.guidance}

        def draw(rows: dict[str, Array], generators: list[torch.Generator]) -> Tensor:
            backend.reset()
            noise = torch.cat([torch.randn(1, 1, model.side, model.side, generator=each) for each in generators])
            pictures = model.sample(denoiser, torch.from_numpy(rows["label"].copy()), noise=noise, **settings).clamp(-1, 1)
            return ((pictures[:, 0] + 1) * 127.5).round().to(torch.uint8) if self.as_bytes else pictures

        return draw


def labelled(count: int) -> pa.Table:
    """Rows of the classes in turn: ``id`` and ``label``."""
    ids = torch.arange(count).numpy()
    return pa.table({"id": ids, "label": ids % NUM_CLASSES})
