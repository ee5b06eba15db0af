"""The noise of a row depends on the run's seed and the row's id, and on nothing else: not on batch, worker or order."""

from collections.abc import Iterable

import numpy as np
import torch

NUM_IDS = 2**32  # torch's generator on the CPU reads 32 bits of a seed


def generators(seed: int, ids: Iterable[int]) -> list[torch.Generator]:
    """Make a generator on the CPU for each id below 2**32; ids that differ have seeds that differ.

    They go where pipelines of diffusers take ``generator=``, one for each picture.
    """
    first = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return [torch.Generator().manual_seed((first + int(row)) % NUM_IDS) for row in ids]
