"""Measure how near a run comes to the run in full from the same noise."""

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import avg_pool2d

from taylorseer_fx.demo.quality import psnr

__all__ = ["along_trajectory", "psnr", "relative_l2", "smoothness", "ssim"]

_WINDOW, _RANGE = 7, 2.0  # pixels; pictures lie in [-1, 1]


def ssim(samples: Tensor, reference: Tensor) -> float:
    """Mean structural similarity of pictures ``[n, c, h, w]`` in [-1, 1] over uniform windows of 7x7 (Wang et al. 2004)."""
    a, b = samples.clamp(-1, 1).double(), reference.clamp(-1, 1).double()

    def mean(x: Tensor) -> Tensor:
        return avg_pool2d(x, _WINDOW, stride=1)

    mean_a, mean_b = mean(a), mean(b)
    unbiased = _WINDOW**2 / (_WINDOW**2 - 1)
    var_a, var_b = unbiased * (mean(a * a) - mean_a**2), unbiased * (mean(b * b) - mean_b**2)
    covariance = unbiased * (mean(a * b) - mean_a * mean_b)
    c1, c2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(similarity.mean())


def relative_l2(value: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of ``reference``; NaN where there is nothing to compare with."""
    norm = float(reference.double().norm())
    return float((value.double() - reference.double()).norm()) / norm if norm else math.nan


def along_trajectory(trajectory: Sequence[Tensor], reference: Sequence[Tensor]) -> list[float]:
    """``relative_l2`` of the latents that each step begins with."""
    return [relative_l2(value, full) for value, full in zip(trajectory, reference, strict=True)]


def smoothness(trajectory: Sequence[Tensor]) -> tuple[float, float]:
    """Mean relative error of taking a step's latents for the next one's, and of continuing the line through the last two."""
    steps = range(2, len(trajectory))
    reuse = [relative_l2(trajectory[i - 1], trajectory[i]) for i in steps]
    line = [relative_l2(2 * trajectory[i - 1] - trajectory[i - 2], trajectory[i]) for i in steps]
    return sum(reuse) / len(reuse), sum(line) / len(line)
