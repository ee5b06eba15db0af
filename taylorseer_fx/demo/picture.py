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

BRIGHTEST_DIFFERENCE = 0.5  # the colour scale of the last panel ends here


def save_picture(path: Path, runs: Sequence[Run], captions: Sequence[str]) -> None:
    """Write one PNG; the last panel is the last run's absolute difference from the first."""
    with mpl.rc_context({"font.family": "sans-serif", "font.size": 11}):
        figure = Figure(figsize=(4.2 * (len(runs) + 1), 3.1), layout="constrained")
        axes = figure.subplots(1, len(runs) + 1)
        for axis, run, caption in zip(axes, runs, captions, strict=False):
            _panel(axis, _grid(run.samples.clamp(-1, 1), paper=-1), f"{run.name}\n{caption}", "gray_r", -1, 1)
        difference = (runs[-1].samples.clamp(-1, 1) - runs[0].samples.clamp(-1, 1)).abs()
        title = f"|{runs[-1].name} - {runs[0].name}|\npaper to ink is 2"
        shown = _panel(axes[-1], _grid(difference, paper=0), title, "Reds", 0, BRIGHTEST_DIFFERENCE)
        figure.colorbar(shown, ax=axes[-1], shrink=0.9, extend="max")
        figure.savefig(path, dpi=100)


def _panel(axis: Any, grid: Tensor, title: str, colours: str, low: float, high: float) -> Any:
    axis.set_title(title)
    axis.set_xticks([])
    axis.set_yticks([])
    return axis.imshow(grid.numpy(), cmap=colours, vmin=low, vmax=high, interpolation="nearest")


def _grid(samples: Tensor, paper: float) -> Tensor:
    """``[rows * classes, 1, side, side]`` to one picture, with a border of a pixel about each."""
    rows = len(samples) // NUM_CLASSES
    padded = pad(samples.view(rows, NUM_CLASSES, *samples.shape[2:]), (1, 1, 1, 1), value=paper)
    return padded.permute(0, 2, 1, 3).reshape(rows * padded.shape[2], NUM_CLASSES * padded.shape[3])
