"""The scope of ``with backend.stream(name)``: of this thread and task, and gone at the end of the block."""

import asyncio
import threading

import pytest

from taylorseer_fx.runtime.scope import Run, Scope, ScopeVariable, StepIndex


def test_none_by_default():
    assert ScopeVariable().get() is None


def test_inside_and_after():
    scopes, scope = ScopeVariable(), Scope("cond")
    with scopes.entered(scope):
        assert scopes.get() is scope
    assert scopes.get() is None


@pytest.mark.parametrize(("inner", "step"), [(2, 2), (None, 1)])
def test_nested(inner, step):
    """Names join, the inner step counts if there is one; leaving the inner scope brings back the outer one."""
    scopes, outer = ScopeVariable(), Scope("request", 1)
    with scopes.entered(outer):
        with scopes.entered(Scope("cond", inner)):
            assert (scopes.get().name, scopes.get().step) == ("request/cond", step)
        assert scopes.get() is outer


class TestBegin:
    """A scope that is not left by the block that entered it: a pipeline's run."""

    def test_until_left(self):
        scopes, run = ScopeVariable(), Run(StepIndex(lambda: None))
        leave = scopes.begin(Scope("pipeline", run=run, is_stream=False))
        with scopes.entered(Scope("cond")):
            assert (scopes.get().name, scopes.get().run, scopes.get().is_stream) == ("pipeline/cond", run, True)
        leave()
        assert scopes.get() is None

    def test_leaving_twice(self):
        scopes = ScopeVariable()
        leave = scopes.begin(Scope("first"))
        leave()
        second = Scope("second")
        scopes.begin(second)
        leave()
        assert scopes.get() is second


class TestStepIndex:
    """The scheduler's index is relied on once it was seen to move just when the timesteps do, over a whole run."""

    @pytest.mark.parametrize(
        ("indices", "times", "trusted"),
        [
            pytest.param([-1, 1, 2, 3], [9, 8, 7, 6], True, id="together"),
            pytest.param([-1, -1, 1, 1, 2], [9, 9, 8, 8, 7], True, id="guidance"),
            pytest.param([-1, 1, 2, 3], [9, 8, 8, 7], False, id="heun"),
            pytest.param([None, None, None], [9, 8, 7], False, id="no-index"),
            pytest.param([-1, -1, -1], [9, 8, 7], False, id="another-scheduler"),
            pytest.param([-1, 1], [9, 8], None, id="too-short-to-tell"),
        ],
    )
    def test_trusted(self, indices, times, trusted):
        position = iter(indices)
        index = StepIndex(lambda: next(position))
        index.begin()
        for time in times:
            index.compare((float(time),))
        index.end()
        assert index.trusted is trusted


def test_left_when_the_block_fails():
    scopes = ScopeVariable()
    with pytest.raises(ValueError, match="inside"), scopes.entered(Scope("cond", None)):
        raise ValueError("inside")
    assert scopes.get() is None


def test_two_backends_do_not_share():
    one, other = ScopeVariable(), ScopeVariable()
    with one.entered(Scope("cond", None)):
        assert other.get() is None


def test_another_thread_does_not_see_it():
    scopes, seen = ScopeVariable(), []
    with scopes.entered(Scope("cond", None)):
        thread = threading.Thread(target=lambda: seen.append(scopes.get()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_tasks_have_their_own():
    """Two requests served by one event loop, switching inside their blocks."""
    scopes = ScopeVariable()

    async def request(name: str) -> list[str]:
        seen = []
        with scopes.entered(Scope(name, None)):
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(scopes.get().name)
        return seen

    async def serve() -> list[list[str]]:
        return await asyncio.gather(request("a"), request("b"))

    assert asyncio.run(serve()) == [["a"] * 3, ["b"] * 3]
