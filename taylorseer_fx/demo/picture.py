"""The demo's picture: the three grids side by side, and where the forecast differs from the full run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

from taylorseer_fx.demo.runs import Run
from taylorseer_fx.shipped import NUM_CLASSES

INK, REDS = "gray_r", "Reds"  # the colours of pictures, and of differences
BRIGHTEST_DIFFERENCE = 0.5  # the colour scale of differences ends here


def save_picture(path: Path, runs: Sequence[Run], captions: Sequence[str]) -> None:
    """Write one PNG; the last panel is the last run's absolute difference from the first."""
    with mpl.rc_context({"font.family": "sans-serif", "font.size": 11}):
        figure = Figure(figsize=(4.2 * (len(runs) + 1), 3.1), layout="constrained")
        axes = figure.subplots(1, len(runs) + 1)
        for axis, run, caption in zip(axes, runs, captions, strict=False):
            _panel(axis, sheet(run.samples), f"{run.name}\n{caption}", INK, -1, 1)
        title = f"|{runs[-1].name} - {runs[0].name}|\npaper to ink is 2"
        difference = difference_sheet(runs[-1].samples, runs[0].samples)
        shown = _panel(axes[-1], difference, title, REDS, 0, BRIGHTEST_DIFFERENCE)
        figure.colorbar(shown, ax=axes[-1], shrink=0.9, extend="max")
        figure.savefig(path, dpi=100)


def _panel(axis: Any, shown: Tensor, title: str, colours: str, low: float, high: float) -> Any:
    axis.set_title(title)
    axis.set_xticks([])
    axis.set_yticks([])
    return axis.imshow(shown.numpy(), cmap=colours, vmin=low, vmax=high, interpolation="nearest")


def sheet(samples: Tensor) -> Tensor:
    """All pictures ``[n, 1, side, side]``, clipped to their range [-1, 1], as one: a row for each round of the classes."""
    return _grid(samples.clamp(-1, 1), paper=-1)


def difference_sheet(samples: Tensor, reference: Tensor) -> Tensor:
    """The absolute differences, 0 to 2, as one picture."""
    return _grid((samples.clamp(-1, 1) - reference.clamp(-1, 1)).abs(), paper=0)


def _grid(samples: Tensor, paper: float) -> Tensor:
    """``[rows * classes, 1, side, side]`` to one picture, with a border of a pixel about each."""
    rows = len(samples) // NUM_CLASSES
    padded = pad(samples.view(rows, NUM_CLASSES, *samples.shape[2:]), (1, 1, 1, 1), value=paper)
    return padded.permute(0, 2, 1, 3).reshape(rows * padded.shape[2], NUM_CLASSES * padded.shape[3])
