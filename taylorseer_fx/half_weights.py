"""Trained parameters kept in float16 on disk and used in float32, which halves the package and changes no sampled class."""

from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file, save_file
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def save_half(model: nn.Module, path: Path) -> None:
    """Writes parameters as float16 and buffers as they are, in safetensors."""
    halves = {name: parameter.half() for name, parameter in model.named_parameters()}
    save_file({name: halves.get(name, tensor).contiguous() for name, tensor in model.state_dict().items()}, path)


def load_half(model: Model, path: Path) -> Model:
    """``model`` with the weights of ``path`` in its own dtype, changed in place."""
    model.load_state_dict(load_file(path))
    return model
