"""Two searches for the place of a number of full steps: a family of growing gaps, and a dynamic program over a recorded run.

    G[s, t] = <F_s, F_t>            Gram matrix of the features of a run in full: ``steps x steps`` numbers, whatever the model
    E[p, q, t]                      squared error at step t of the line through the full steps p < q, all of it from G
    C[p, q, r] = sum_t E[p, q, t]   over the steps t between q and the next full step r

The list of least cost is found by going over pairs (last full step, the one before). A cost is that of a line; lists for higher
orders are judged, like all others, by really running them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from taylorseer_fx.runtime.placement import place

Matrix = NDArray[np.float64]
LEADING = (1, 2, 3)
EXPONENTS = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6)
FADING = (0.0, 1.0, 2.0)  # how much less errors count towards the end of a run: what comes after them is shorter


def family(num_steps: int, num_full: int) -> Iterator[tuple[int, ...]]:
    """The lists of growing gaps, each once."""
    lists = (place(num_steps, num_full, leading, exponent) for leading in LEADING for exponent in EXPONENTS)
    yield from dict.fromkeys(lists)


def programmed(gram: Matrix, num_full: int) -> Iterator[tuple[int, ...]]:
    """The lists of least cost, each once: one for each way of weighting errors at the end of the run."""
    num_steps = len(gram)
    errors = line_errors(gram)
    reuse = reuse_errors(gram)
    left = 1 - np.arange(num_steps) / num_steps
    yield from dict.fromkeys(cheapest(errors * left**fading, reuse * left**fading, num_full) for fading in FADING)


def reuse_errors(gram: Matrix) -> Matrix:
    """The squared distance of the feature at ``t`` from that at step 0, as ``[t]``."""
    errors: Matrix = gram[0, 0] + np.diag(gram) - 2 * gram[0]
    return errors


def line_errors(gram: Matrix) -> Matrix:
    """Compute ``E[p, q, t]`` for ``p < q < t``, zero elsewhere."""
    steps = np.arange(len(gram), dtype=np.float64)
    p, q, t = steps[:, None, None], steps[None, :, None], steps[None, None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(q > p, (t - q) / (q - p), 0.0)
    old, new = -slope, 1 + slope
    diagonal = np.diag(gram)
    error = (
        old**2 * diagonal[:, None, None]
        + new**2 * diagonal[None, :, None]
        + diagonal[None, None, :]
        + 2 * old * new * gram[:, :, None]
        - 2 * old * gram[:, None, :]
        - 2 * new * gram[None, :, :]
    )
    return np.where((p < q) & (q < t), np.maximum(error, 0.0), 0.0)


def cheapest(errors: Matrix, reuse: Matrix, num_full: int) -> tuple[int, ...]:
    """The list of ``num_full`` full steps of least summed error; ``errors[p, q, t]`` and ``reuse[t]`` are weighted already."""
    num_steps = len(reuse)
    if num_full == 1:
        return (0,)
    between = np.concatenate([np.zeros((num_steps, num_steps, 1)), np.cumsum(errors, axis=2)], axis=2)  # [p, q, r]: over t < r
    reused = np.concatenate([[0.0], np.cumsum(reuse)])
    cost = np.full((num_steps, num_steps), np.inf)  # [p, q]: of all before q, if the last two full steps are p and q
    cost[0, 1:] = reused[1:num_steps] - reused[1]
    came_from = []
    for _ in range(num_full - 2):
        through = cost[:, :, None] + between[:, :, :num_steps]  # [p, q, r]
        through[:, np.arange(num_steps)[:, None] >= np.arange(num_steps)[None, :]] = np.inf
        came_from.append(through.argmin(axis=0))
        cost = through.min(axis=0)
    last = cost + between[:, :, num_steps]
    p, q = np.unravel_index(int(last.argmin()), last.shape)
    found = [int(q), int(p)]
    for before in reversed(came_from):
        found.append(int(before[found[-1], found[-2]]))
    return tuple(reversed(found))


def neighbours(steps: Sequence[int], num_steps: int) -> Iterator[tuple[int, ...]]:
    """The lists in which one full step is moved by one, earlier or later."""
    for i in range(1, len(steps)):
        for moved in (steps[i] - 1, steps[i] + 1):
            following = steps[i + 1] if i + 1 < len(steps) else num_steps
            if steps[i - 1] < moved < following:
                yield (*steps[:i], moved, *steps[i + 1 :])
