"""Read the result of a caller's ``run()`` as one array per sample, and compare two runs."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from taylorseer_fx.errors import ConfigError

Sample = NDArray[np.float64]
WHITE = 255.0  # of pictures of bytes


def samples_of(result: Any) -> list[Sample]:
    """List the samples in the result of a pipeline, in a list of pictures, or in a batch (tensor or array, first dimension).

    Raises:
        ConfigError: there are none.
    """
    found = list(_samples(result))
    if not found:
        raise ConfigError("run", "a function that returns pictures, a batch of them, or the output of a pipeline", result)
    return found


def _samples(result: Any) -> Iterator[Sample]:
    for name in ("images", "frames", "latents"):
        if hasattr(result, name):
            yield from _samples(getattr(result, name))
            return
    if isinstance(result, torch.Tensor):
        yield from (each.double().cpu().numpy() for each in result.detach())
    elif isinstance(result, np.ndarray):
        yield from (each.astype(np.float64) for each in result)
    elif isinstance(result, (list, tuple)):
        for each in result:
            if hasattr(each, "getbands"):  # a picture of PIL
                yield np.asarray(each).astype(np.float64)
            else:
                yield from _samples(each)


def decibels(samples: list[Sample], reference: list[Sample]) -> list[float]:
    """Compute the peak signal-to-noise ratio of each sample against its reference, in dB; infinite where they are equal.

    The peak is 255 where the reference holds whole numbers from 0 to 255, else the range of all of it.

    Raises:
        ConfigError: the runs made different numbers or sizes of samples.
    """
    shapes, expected = [each.shape for each in samples], [each.shape for each in reference]
    if shapes != expected:
        raise ConfigError("run", f"a function that returns samples of the same shapes each time, {expected}", shapes)
    peak = _peak(reference)
    return [_decibels(float(np.square(a - b).mean()), peak) for a, b in zip(samples, reference, strict=True)]


def _peak(reference: list[Sample]) -> float:
    low, high = min(float(each.min()) for each in reference), max(float(each.max()) for each in reference)
    are_bytes = low >= 0 and high <= WHITE and high > 1 and all((each == each.round()).all() for each in reference)
    return WHITE if are_bytes else high - low


def _decibels(error: float, peak: float) -> float:
    if error == 0:
        return math.inf
    return 10 * math.log10(peak**2 / error) if math.isfinite(error) else -math.inf
