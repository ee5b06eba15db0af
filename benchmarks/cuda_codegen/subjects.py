"""What code is generated for: published geometries in bfloat16 on the meta device, at any depth."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taylorseer_fx.bench import models
from taylorseer_fx.bench.geometries import GEOMETRIES

DTYPE = torch.bfloat16


@dataclass(frozen=True, eq=False)
class Subject:
    """A model: how to build so and so many blocks of each of its kinds, and the name of the geometry that its inputs have.

    ``aims``: the most launches of a forecast step at full depth, and the most bytes over the fewest possible.
    """

    name: str
    build: Callable[..., nn.Module]
    depth: tuple[int, ...]
    geometry: str
    aims: dict[str, float]

    def on_meta(self, depth: tuple[int, ...]) -> tuple[nn.Module, dict[str, Any]]:
        """The model and its inputs without storage."""
        with torch.device("meta"):
            inputs = {name: _half(value) for name, value in GEOMETRIES[self.geometry].inputs().items()}
            return nn.Module.to(self.build(*depth), DTYPE).eval().requires_grad_(False), inputs | {"return_dict": False}


def _half(value: Tensor) -> Tensor:
    return value.to(DTYPE) if value.is_floating_point() else value


FLUX = Subject("FLUX.1-dev 1024x1024", models.flux, (19, 38), "FLUX.1-dev", {"launches": 110, "over_floor": 1.03})
DIT = Subject("DiT-XL/2 256x256, batch 2", models.dit_xl2, (28,), "DiT-XL/2-256", {"launches": 60, "over_floor": 1.05})
SUBJECTS = (DIT, FLUX)
