"""A small trained model of FLUX's architecture and its sampler: joint and single blocks, flow matching, true guidance.

The weights were trained by ``benchmarks/train_fashion.py`` on Fashion-MNIST, which nothing here needs; MODEL_CARD.md beside this
file says for how long and to which loss.
"""

from taylorseer_fx.fashion.model import (
    CLASS_NAMES,
    FASHION_CONFIG,
    NUM_CLASSES,
    WEIGHTS_PATH,
    build_fashion_model,
    load_fashion_model,
)
from taylorseer_fx.fashion.sampling import build_scheduler, sample_fashion

__all__ = [
    "CLASS_NAMES",
    "FASHION_CONFIG",
    "NUM_CLASSES",
    "WEIGHTS_PATH",
    "build_fashion_model",
    "build_scheduler",
    "load_fashion_model",
    "sample_fashion",
]
