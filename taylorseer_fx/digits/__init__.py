"""A small trained Diffusion Transformer and its sampler: what the demo and the quality tests run on.

The weights were trained by ``benchmarks/train_digits.py`` on scikit-learn's bundled 8x8 digits; MODEL_CARD.md beside this
file says on what, for how long and to which loss.
"""

from taylorseer_fx.digits.model import DIGITS_CONFIG, WEIGHTS_PATH, build_digits_model, load_digits_model
from taylorseer_fx.digits.sampling import NUM_CLASSES, build_scheduler, sample_digits

__all__ = [
    "DIGITS_CONFIG",
    "NUM_CLASSES",
    "WEIGHTS_PATH",
    "build_digits_model",
    "build_scheduler",
    "load_digits_model",
    "sample_digits",
]
