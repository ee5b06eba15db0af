"""A rank that begins anew while the others go on: an error on all of them, within one full step, and no wrong result before."""

import random

import pytest

from tests.distributed.ranks import needs_gloo, run_ranks
from tests.distributed.tasks import NUM_STEPS, Cell, Mishap
from tests.turns import in_turns

pytestmark = needs_gloo

FULL_CALLS = (0, 1, 4, 7, 10, 11, 14, 17)  # of two generations
NUM_CASES = 10  # of either way


def mishaps(way: str) -> list[Mishap]:
    """A random rank begins anew at a random step, by a reset or by an exception in a call; in some cases steps are given."""
    draw = random.Random(way)
    return [
        Mishap(draw.randrange(2), draw.randrange(1, NUM_STEPS), draw.choice(("reset", "exception")), draw.random() < 0.5)
        for _ in range(NUM_CASES)
    ]


@pytest.mark.parametrize("way", in_turns(["tensor", "ulysses"], weeks=4))
def test_an_error_on_every_rank(way, tmp_path):
    """Twenty random cases in all. Whatever is returned before the error is right, and afterwards both begin again.

    A rank that fails in the last step begins the next generation with the other: there is nothing to disagree on.
    """
    cases = mishaps(way)
    ranks = run_ranks("run_mishaps", tmp_path, Cell("flux", way), cases)
    assert all(len(outcomes) == NUM_CASES for outcomes in ranks)
    for i, case in enumerate(cases):
        next_full = next(call for call in FULL_CALLS if call >= case.step)
        for rank, outcome in enumerate(outcomes[i] for outcomes in ranks):
            assert outcome.wrong_calls == [], (case, rank)
            assert outcome.recovers, (case, rank)
            if (case.event, case.step) == ("exception", NUM_STEPS - 1):
                assert outcome.error is None, (case, rank)
            else:
                assert "rank 0 at step" in outcome.error, (case, rank)
                assert "rank 1 at step" in outcome.error, (case, rank)
                assert case.step <= outcome.failed_at <= next_full + 1, (case, rank)


@pytest.mark.turn(7, 8)
def test_a_rank_that_ends(tmp_path):
    """The other reports its own step, and that nobody answers."""
    first, second = run_ranks("run_until_one_ends", tmp_path, Cell("flux", "tensor"))
    assert "rank 0 is at step 7 (full" in first
    assert "did not come" in first
    assert second == "ended"
