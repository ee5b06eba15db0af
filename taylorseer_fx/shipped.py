"""The two trained models that ship in the package, behind one face, for commands and benchmarks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from taylorseer_fx import digits, fashion
from taylorseer_fx.digits import sampling as digits_sampling
from taylorseer_fx.fashion import sampling as fashion_sampling

NUM_CLASSES = 10  # of either


class Judging(Protocol):
    """A classifier of the real pictures."""

    def accuracy(self, samples: Tensor, wanted: Tensor) -> float:
        """Share of ``samples`` named as the class asked for."""


def _judge_of_digits() -> Judging:
    from taylorseer_fx.digits.judge import Judge  # needs scikit-learn

    return Judge()


def _judge_of_fashion() -> Judging:
    from taylorseer_fx.fashion.judge import Judge

    return Judge()


@dataclass(frozen=True)
class Shipped:
    """A trained model and its sampler.

    ``denoising_steps(denoiser, labels, num_steps=, guidance_scale=, seed=)`` yields the noisy pictures ``[n, 1, side, side]``
    after each step; the last are in [-1, 1], not clipped. ``noise=``, of the same shape, in place of a seed.
    """

    name: str
    title: str
    side: int
    load: Callable[[], nn.Module]
    denoising_steps: Callable[..., Iterator[Tensor]]
    judge: Callable[[], Judging]

    def sample(self, denoiser: Callable[..., Any], labels: Tensor, **settings: Any) -> Tensor:
        """One picture a label: the last of ``denoising_steps``."""
        *_, pictures = self.denoising_steps(denoiser, labels, **settings)
        return pictures


DIGITS = Shipped("digits", "digits (DiT, DDIM)", 8, digits.load_digits_model, digits_sampling.denoising_steps, _judge_of_digits)
FASHION = Shipped(
    "fashion",
    "fashion (FLUX, flow matching)",
    28,
    fashion.load_fashion_model,
    fashion_sampling.denoising_steps,
    _judge_of_fashion,
)
SHIPPED = {model.name: model for model in (DIGITS, FASHION)}
