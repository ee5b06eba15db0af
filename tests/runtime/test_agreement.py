"""Ranks agree once a forward, in a group that lives as long as the model's; in tests/distributed two of them disagree."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch.distributed as dist

from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.runtime.agreement import Agreement, Position, _text
from taylorseer_fx.runtime.ticks import Tick
from tests.distributed.ranks import needs_gloo

TICK = Tick(("cond", 0), 1, 5, time=(0.5,))
POSITION = Position.of(TICK, 0, 4, StepKind.FULL)


@contextmanager
def alone() -> Iterator[str]:
    """A group of this process only; yields its name."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.group.WORLD.group_name
    finally:
        dist.destroy_process_group()


@needs_gloo
def test_once_a_forward():
    """A model that compiled to many graphs asks in each; the position is made when it is asked for."""
    asked = []

    def position() -> Position:
        asked.append(1)
        return POSITION

    agreement = Agreement()
    with alone() as group:
        for tick in (TICK, TICK, replace(TICK, step=6)):
            agreement.require([group], tick, position)
    assert len(asked) == 2


@needs_gloo
def test_a_group_that_is_made_anew():
    """Its name is the same, and the group in which ranks agree is gone with the first."""
    agreement = Agreement()
    for step in range(2):
        with alone() as group:
            agreement.require([group], replace(TICK, step=step), lambda: POSITION)


def test_generations_before_do_not_count():
    assert Position.of(replace(TICK, generation=7), 0, 4, StepKind.FULL) == POSITION


def test_texts():
    """The step, what is known of it, and the stream or the time where only these differ."""
    first = Position.of(replace(TICK, step=0), 0, 0, StepKind.FULL)
    forecast = Position.of(TICK, 2, 1, StepKind.FORECAST)
    assert _text(first, [first, forecast]) == "step 0 (full; the first)"
    assert _text(forecast, [first, forecast]) == "step 5 (forecast; begun at 2, last full 3)"
    other = replace(POSITION, stream=1)
    assert "of stream 1" in _text(other, [POSITION, other])
    assert " at time " in _text(POSITION, [POSITION, replace(POSITION, time=0)])
