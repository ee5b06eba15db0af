"""The real digits, and a classifier fitted on them that says which class a generated picture shows."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor


def load_real_digits() -> tuple[Tensor, Tensor]:
    """Pictures float32 ``[1797, 1, 8, 8]`` in [-1, 1] and labels int64 ``[1797]``."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 8.0 - 1.0, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)


class Judge:
    """A support-vector classifier fitted on all real digits."""

    def __init__(self) -> None:
        images, labels = load_real_digits()
        self._images, self._labels = images.flatten(1).numpy(), labels.numpy()
        self._classifier = _fit(self._images, self._labels)

    def accuracy(self, samples: Tensor, wanted: Tensor) -> float:
        """Share of ``samples`` named as the class asked for."""
        named = self._classifier.predict(samples.clamp(-1, 1).flatten(1).numpy())
        return float((named == wanted.numpy()).mean())

    def held_out_accuracy(self) -> float:
        """Accuracy of the same recipe fitted on four fifths of the real digits, on the last fifth."""
        count = len(self._labels)
        held_out = np.random.default_rng(0).permutation(count) < count // 5
        classifier = _fit(self._images[~held_out], self._labels[~held_out])
        return float(classifier.score(self._images[held_out], self._labels[held_out]))


def _fit(images: NDArray[Any], labels: NDArray[Any]) -> SVC:
    return SVC(gamma="scale", C=10).fit(images, labels)
