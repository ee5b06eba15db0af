"""Try settings on a model that is compiled already: schedule, forecaster and order are data, not code."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from taylorseer_fx.backend import TaylorSeerBackend
from taylorseer_fx.runtime.placement import AnySchedule
from taylorseer_fx.runtime.schedule import Schedule

IN_FULL = Schedule(interval=1, warmup=1)


@contextmanager
def trying(
    backend: TaylorSeerBackend, schedule: AnySchedule, order: int | None = None, forecaster: str | None = None
) -> Iterator[None]:
    """Generate with other settings inside the block; all streams begin anew before and after it.

    Args:
        backend: that of a model which is compiled already, or will be.
        schedule: which steps are full.
        order: at most what the backend's buffers allow; None for its own.
        forecaster: the name of one; None for the backend's own.
    """
    runtime = backend._runtime
    before = runtime.schedule, runtime.storage, runtime.forecaster
    storage = runtime.storage
    runtime.reset()
    runtime.schedule = schedule
    if order is not None:
        runtime.storage = replace(storage, order=order, history=storage.num_buffers)
    runtime.forecaster = forecaster or runtime.forecaster
    try:
        yield
    finally:
        runtime.reset()
        runtime.schedule, runtime.storage, runtime.forecaster = before
