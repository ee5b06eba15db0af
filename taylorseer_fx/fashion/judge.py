"""A small convolutional network fitted on the real pictures, which says what a generated one shows.

The real pictures are not at hand at run time, so what is known of them ships with the network's weights: its accuracy on the
10,000 held-out ones, and their mean and covariance in its features, for a Frechet distance. Fitted by
``benchmarks/fit_fashion_judge.py``.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from taylorseer_fx.fashion.model import NUM_CLASSES
from taylorseer_fx.half_weights import load_half

JUDGE_PATH = Path(__file__).with_name("judge.safetensors")
NUM_FEATURES = 48


class JudgeNetwork(nn.Module):
    """Two convolutions and two linear layers, 0.1 M parameters; the buffers are filled when it has been fitted."""

    held_out_accuracy: Tensor
    real_mean: Tensor
    real_covariance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1),
            nn.BatchNorm2d(48),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(48 * 7 * 7, NUM_FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.register_buffer("held_out_accuracy", torch.zeros(()))
        self.register_buffer("real_mean", torch.zeros(NUM_FEATURES))
        self.register_buffer("real_covariance", torch.zeros(NUM_FEATURES, NUM_FEATURES))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits ``[n, 10]`` of pictures ``[n, 1, 28, 28]`` in [-1, 1]."""
        logits: Tensor = self.head(self.body(pictures))
        return logits

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """The last hidden layer ``[n, 48]`` of pictures ``[n, 1, 28, 28]``, clipped to [-1, 1], a thousand at a time."""
        return torch.cat([self.body(chunk.clamp(-1, 1)) for chunk in torch.split(pictures, 1000)])

    @torch.no_grad()
    def accuracy(self, pictures: Tensor, labels: Tensor) -> float:
        """Share of ``pictures`` named as their class."""
        named = self.head(self.features(pictures)).argmax(dim=-1)
        return float((named == labels).double().mean())


class Judge:
    """The fitted network: the same face as the judge of the digits."""

    def __init__(self) -> None:
        self._network = load_half(JudgeNetwork(), JUDGE_PATH).eval().requires_grad_(False)

    def accuracy(self, samples: Tensor, wanted: Tensor) -> float:
        """Share of ``samples`` named as the class asked for."""
        return self._network.accuracy(samples, wanted)

    def held_out_accuracy(self) -> float:
        """Share of the 10,000 real pictures it was not fitted on that it names rightly."""
        return float(self._network.held_out_accuracy)

    def features(self, samples: Tensor) -> Tensor:
        """Compute float32 features ``[n, 48]`` of pictures ``[n, 1, 28, 28]``."""
        return self._network.features(samples)

    def real_moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``[48]`` and covariance ``[48, 48]`` of the held-out real pictures' features."""
        return self._network.real_mean, self._network.real_covariance
