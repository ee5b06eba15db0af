"""What is measured: for each number of full steps, every way to place them and every forecaster."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from taylorseer_fx.judging import WARMUPS, papers_list
from taylorseer_fx.runtime.forecasters import FORECASTERS
from taylorseer_fx.runtime.placement import place

GRANULARITIES = ("module", "stack")
STEPS, GUIDANCES, FULL = (20, 28, 50, 100), (2.0, 1.0, 4.0), (6, 8, 10, 12, 16)
HEADLINE = ((50, 10), (50, 8), (28, 8))  # steps, full steps
ORDERS = (1, 2, 3)
PAPER = "paper, warm-up 3"


@dataclass(frozen=True)
class Cell:
    """One run. ``kind``: "paper" with the warm-up, "default", "calibrated" or "fewer steps"."""

    model: str
    granularity: str
    num_steps: int
    guidance: float
    num_full: int
    kind: str
    order: int = 1
    forecaster: str = "taylor"

    @property
    def key(self) -> str:
        return (
            f"{self.model}, {self.granularity}, {self.num_full} of {self.num_steps}, guidance {self.guidance:g}, {self.kind}, "
            f"order {self.order}, {self.forecaster}"
        )

    @property
    def setting(self) -> tuple[str, str, int, float, int]:
        return self.model, self.granularity, self.num_steps, self.guidance, self.num_full


def ways(num_steps: int, num_full: int) -> dict[str, tuple[int, ...]]:
    """The lists of full steps that need no calibration, by kind."""
    papers = {f"paper, warm-up {warmup}": papers_list(num_steps, num_full, warmup) for warmup in WARMUPS}
    return {kind: steps for kind, steps in papers.items() if steps is not None} | {"default": place(num_steps, num_full)}


def cells(model: str, granularity: str) -> Iterator[Cell]:
    """All that need no calibration, the most telling first: forecasters and fewer steps once, for modules."""
    is_module = granularity == GRANULARITIES[0]
    for (num_steps, num_full), forecaster, order in product(HEADLINE, FORECASTERS if is_module else ("taylor",), ORDERS):
        for kind in (PAPER, "default"):
            yield Cell(model, granularity, num_steps, 2.0, num_full, kind, order, forecaster)
    for guidance, num_steps, num_full in product(GUIDANCES, STEPS, FULL):
        for kind in ways(num_steps, num_full):
            yield Cell(model, granularity, num_steps, guidance, num_full, kind)
        if is_module:
            yield Cell(model, granularity, num_steps, guidance, num_full, "fewer steps")


def calibrations() -> Iterator[tuple[int, float, tuple[int, ...]]]:
    """Steps, guidance and numbers of full steps to calibrate for, order 1."""
    yield 50, 2.0, (8, 10, 12)
    yield 28, 2.0, (8,)
