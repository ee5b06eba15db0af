"""Frechet distance between generated and real pictures, in the features of a classifier fitted on the real ones.

Not Inception FID: the pictures are small and grey, and the features are a few dozen numbers of a small network. Figures compare
with one another at the same number of samples, and with nothing else.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from taylorseer_fx.digits.judge import load_real_digits
from taylorseer_fx.shipped import DIGITS, Shipped

Array = NDArray[np.float64]
HIDDEN = (64, 32)


class FeatureSpace:
    """The last hidden layer of a perceptron that names digits, fitted on all real ones; the same one every time."""

    def __init__(self) -> None:
        images, labels = load_real_digits()
        self._classifier = MLPClassifier(HIDDEN, random_state=0, max_iter=400).fit(_flat(images), labels.numpy())
        self.real = self.features(images)

    def features(self, samples: Tensor) -> Array:
        """``[n, 32]`` of pictures ``[n, 1, 8, 8]``, clipped to [-1, 1]."""
        hidden = _flat(samples)
        for weight, bias in list(zip(self._classifier.coefs_, self._classifier.intercepts_, strict=True))[: len(HIDDEN)]:
            hidden = np.maximum(hidden @ weight + bias, 0)
        return hidden

    def distance(self, samples: Tensor) -> float:
        """Frechet distance of ``samples`` from the real digits."""
        return frechet_distance(self.features(samples), self.real)

    def between_halves(self) -> float:
        """The distance of one half of the real digits from the other, to see the figures by."""
        order = np.random.default_rng(0).permutation(len(self.real))
        half = len(order) // 2
        return frechet_distance(self.real[order[:half]], self.real[order[half:]])


def distance_from_real(model: Shipped, samples: Tensor) -> float:
    """Frechet distance of a shipped model's pictures from the real ones, in the features of a classifier of these."""
    if model is DIGITS:
        return feature_space().distance(samples)
    from taylorseer_fx.fashion.judge import Judge

    judge = Judge()
    real_mean, real_covariance = (each.double().numpy() for each in judge.real_moments())
    return distance_of_moments(*moments(judge.features(samples).double().numpy()), real_mean, real_covariance)


@cache
def feature_space() -> FeatureSpace:
    """Fitted once a process."""
    return FeatureSpace()


def frechet_distance(a: Array, b: Array) -> float:
    """Between two Gaussians of the mean and covariance of ``[n, d]`` and ``[m, d]``."""
    return distance_of_moments(*moments(a), *moments(b))


def moments(points: Array) -> tuple[Array, Array]:
    """Mean ``[d]`` and covariance ``[d, d]`` of ``[n, d]``."""
    return points.mean(0), np.cov(points, rowvar=False)


def distance_of_moments(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """``|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)``."""
    root = _root(cov_a)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return float(distance)


def _root(matrix: Array) -> Array:
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    root: Array = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root


def _flat(images: Tensor) -> NDArray[Any]:
    return images.clamp(-1, 1).flatten(1).to(torch.float64).numpy()
