"""Fashion-MNIST as Debian's ``dataset-fashion-mnist`` installs it: for training and for fitting the judge, never at run time."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path("/usr/share/datasets/fashion-mnist")


def load_fashion_mnist(split: str, folder: Path = FOLDER) -> tuple[Tensor, Tensor]:
    """Pictures float32 ``[n, 1, 28, 28]`` in [-1, 1] and labels int64 ``[n]``; ``split`` is train (60,000) or t10k (10,000)."""
    pixels = _read(folder / f"{split}-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
    labels = _read(folder / f"{split}-labels-idx1-ubyte.gz", header=8)
    return torch.from_numpy(pixels / np.float32(127.5) - 1), torch.from_numpy(labels.astype(np.int64))


def _read(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)
