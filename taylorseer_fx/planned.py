"""Run by a plan file: its schedule, and a check that model and run are those that it was made for."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from taylorseer_fx.config import BackendConfig
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.numbers import GraphNumbers
from taylorseer_fx.plan_file import GraphSignature, PlanFile, RunSignature
from taylorseer_fx.runtime.placement import AnySchedule, Listed, Placement
from taylorseer_fx.runtime.schedule import Schedule


def signature_of(numbers: GraphNumbers) -> GraphSignature:
    """A plan's record of a compiled graph; without the number of samples made at once, which changes nothing for any of them."""
    kinds = Counter(region.kind for region in numbers.regions)
    features = Counter(
        f"{str(feature.dtype).removeprefix('torch.')}[{', '.join(_sizes(feature.shape))}]"
        for region in numbers.regions
        for feature in region.features
    )
    return GraphSignature(tuple(sorted(kinds.items())), tuple(f"{count} {text}" for text, count in sorted(features.items())))


def _sizes(shape: Sequence[object]) -> list[str]:
    """The sizes of a feature ``[batch, ..., width]``; one of two dimensions has its tokens first, and all count."""
    return ["*" if i == 0 and len(shape) > 2 else str(size) for i, size in enumerate(shape)]


@dataclass(frozen=True)
class PlannedRuns:
    """The plan of a backend, if it has one. With ``plan_mismatch="warn"`` differences are warnings, and the plan is used."""

    config: BackendConfig
    notify: Callable[[str, str], None]

    def schedule(self) -> AnySchedule:
        """The schedule of the backend's runs."""
        plan = self.config.plan
        if plan is None:
            return self.config.schedule
        return Listed(plan.list_for(self.config.speedup), plan.num_steps, self._of_another_length)

    def check_graph(self, count: Callable[[], GraphNumbers]) -> None:
        """Check a compiled graph. ``count`` is called only if there is a plan: counting takes seconds for a large graph.

        Raises:
            ConfigError: a graph with regions was compiled that the plan is not for.
        """
        if self.config.plan is not None and (numbers := count()).regions:
            self._say(self.config.plan.differences(signature_of(numbers)))

    def check_run(self, pipe: Any) -> None:
        """Raises:
        ConfigError: a run of an attached pipeline begins that the plan is not for.
        """
        if self.config.plan is not None:
            self._say(self.config.plan.differences_of_run(RunSignature.of(pipe)))

    def _of_another_length(self, num_steps: int) -> Schedule | Placement:
        """Place as many full steps as the list would have, in growing gaps."""
        plan = self.config.plan
        assert plan is not None
        self._say([f"the number of steps: the plan is for {plan.num_steps}, here are {num_steps}"])
        return Placement(self.config.speedup or plan.num_steps / len(plan.list_for(None)))

    def _say(self, differences: Iterable[str]) -> None:
        for text in differences:
            if self.config.plan_mismatch == "error":
                hint = f'{text}. Calibrate for it, or take the plan all the same with plan_mismatch="warn".'
                raise ConfigError("plan", "for this model and run", _name(self.config.plan), hint[0].upper() + hint[1:])
            self.notify(f"plan: {text}", f"the plan is used for what it was not made for, and may be worse than none: {text}.")


def _name(plan: PlanFile | None) -> str:
    assert plan is not None
    return f"one for {plan.num_steps} steps, order {plan.order}, {plan.granularity}"
