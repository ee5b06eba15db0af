"""What a test needs of a diffusion transformer: how to build it small, and its inputs at a step of a generation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A class that ``diffusers.models.transformers`` exports, in a configuration that changes the graph.

    ``name`` is the class, with ``-variant`` after it where there are several. ``build()`` returns the model, float32, three
    blocks of each kind, every parameter random (``tests.zoo.randomize``). ``inputs(step, seed)`` are the keyword arguments of
    a step, 0 to 50, of a generation: latents move smoothly with the step, time runs the way the model's pipeline runs it;
    another seed is another prompt and other noise.

    ``fullgraph``: one graph only under ``fullgraph=True`` (which implies scalar and dynamic-output capture). ``broken``: why
    the graph breaks even so. ``untimed``: why no input tells the time. ``attends``: the attention that is no residual branch and
    so is left in a forecast step. ``ascending``: time rises over a generation.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[float, int], Inputs]
    fullgraph: bool = False
    broken: str = ""
    untimed: str = ""
    attends: str = ""
    ascending: bool = False

    @property
    def class_name(self) -> str:
        return self.name.partition("-")[0]
