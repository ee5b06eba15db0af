"""Measure how near two sets of pictures are."""

import math

from torch import Tensor


def psnr(samples: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over all pictures, clipped to their range [-1, 1]; infinite where they are equal."""
    error = (samples.clamp(-1, 1) - reference.clamp(-1, 1)).double().square().mean().item()
    return 10 * math.log10(2.0**2 / error) if error else math.inf
