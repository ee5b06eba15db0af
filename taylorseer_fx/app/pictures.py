"""Pictures for the page: PNG, one pixel a number; the page enlarges them."""

import base64
import io

from matplotlib.image import imsave
from torch import Tensor

from taylorseer_fx.demo.picture import BRIGHTEST_DIFFERENCE, INK, REDS, difference_sheet, sheet


def picture(samples: Tensor) -> str:
    """All of ``[n, 1, side, side]`` in [-1, 1] as a ``data:`` address, a row for each round of the classes."""
    return _png(sheet(samples), INK, -1, 1)


def difference_picture(samples: Tensor, reference: Tensor) -> str:
    """The absolute differences, white where there are none; the darkest red is ``BRIGHTEST_DIFFERENCE`` and above."""
    return _png(difference_sheet(samples, reference), REDS, 0, BRIGHTEST_DIFFERENCE)


def _png(shown: Tensor, colours: str, low: float, high: float) -> str:
    file = io.BytesIO()
    imsave(file, shown.numpy(), vmin=low, vmax=high, cmap=colours, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
