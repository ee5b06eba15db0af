"""The versions that a report or a plan was made with."""

import platform

import diffusers
import torch

from taylorseer_fx.version import __version__


def versions() -> dict[str, str]:
    """Of this package, torch, diffusers and Python."""
    return {
        "taylorseer_fx": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "Python": platform.python_version(),
    }
