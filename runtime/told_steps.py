"""The steps that the user gives in ``with backend.stream(name, step=i)``: each must follow the one before.

    stands at        4
    may come next    5   0 (a new generation)   4 (with other conditioning: the other half of guidance)
    may not          6, 7, ... 3, 2, 1, 4 (with the same conditioning)

Buffers hold the steps before, so at any other step forecasts would be wrong: for a request that joins another's stream, say. The
block that the step was given in counts, whatever is nested there, so guidance that pauses skips nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from taylorseer_fx.errors import StreamStepError
from taylorseer_fx.runtime.scope import Scope


def _stream(scope: Scope | None) -> str | None:
    """The block that a step was given in; none for a run of a pipeline, which tells its steps itself."""
    return scope.told_by if scope is not None and scope.run is None else None


@dataclass
class ToldSteps:
    """The step that each block has reached, by its name."""

    steps: dict[str, int] = field(default_factory=dict)

    def check(self, scope: Scope, repeats: Callable[[], bool]) -> None:
        """Check the step of a call. ``repeats``: was its stream called at this step before?

        Raises:
            StreamStepError: ``scope.step`` is not one that may come next.
        """
        stream = _stream(scope)
        stands_at = self.steps.get(stream) if stream is not None else None
        if stream is None or stands_at is None or scope.step is None or scope.step in (0, stands_at + 1):
            return
        if scope.step != stands_at or repeats():
            raise StreamStepError(stream, stands_at, scope.step)

    def note(self, scope: Scope | None) -> None:
        """Record the step of a forward."""
        stream = _stream(scope)
        if scope is not None and stream is not None and scope.step is not None:
            self.steps[stream] = scope.step

    def abandon(self, scope: Scope | None) -> None:
        """Note a failed call. Its own stream begins anew, at any step; others that go by steps of the block around it do not."""
        if scope is not None and scope.told_by == scope.name:
            self.steps.pop(scope.name, None)

    def forget(self, chosen: Callable[[str | None], bool]) -> None:
        """Forget the streams of ``chosen`` names, which were freed."""
        self.steps = {name: step for name, step in self.steps.items() if not chosen(name)}
