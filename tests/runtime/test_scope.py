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
        scopes, run = ScopeVariable(), Run(StepIndex())
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
            pytest.param([0, 1, 2, 3], [9, 8, 7, 6], True, id="together"),
            pytest.param([0, 0, 1, 1, 2], [9, 9, 8, 8, 7], True, id="guidance"),
            pytest.param([0, 1, 2, 3], [9, 8, 8, 7], False, id="heun"),
            pytest.param([None, None, None], [9, 8, 7], False, id="no-index"),
            pytest.param([0, 0, 0], [9, 8, 7], False, id="another-scheduler"),
            pytest.param([0, 1], [9, 8], None, id="too-short-to-tell"),
        ],
    )
    def test_trusted(self, indices, times, trusted):
        index = StepIndex()
        index.begin(indices[0])
        for position, time in zip(indices, times, strict=True):
            index.value = position
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


class TestOpenAndClose:
    """Whoever counts the open blocks is told of each once, by the names that it goes by."""

    def test_told_of_each(self):
        told = []
        scopes = ScopeVariable(
            lambda scope: told.append(("+", scope.name, scope.root)), lambda scope: told.append(("-", scope.name))
        )
        with scopes.entered(Scope("a")), scopes.entered(Scope("b")):
            pass
        leave = scopes.begin(Scope("run"))
        scopes.begin(Scope("another"))
        leave()
        leave()
        assert told == [
            ("+", "a", "a"),
            ("+", "a/b", "a"),
            ("-", "a/b"),
            ("-", "a"),
            ("+", "run", "run"),
            ("+", "run/another", "run"),
            ("-", "run"),
        ]

    def test_may_refuse(self):
        def refuse(_scope):
            raise ValueError("full")

        scopes = ScopeVariable(refuse, lambda scope: pytest.fail("was never open"))
        with pytest.raises(ValueError, match="full"), scopes.entered(Scope("a")):
            pytest.fail("entered")
        with pytest.raises(ValueError, match="full"):
            scopes.begin(Scope("a"))
        assert scopes.get() is None

    @pytest.mark.parametrize(
        ("outer", "inner", "told_by"),
        [
            (Scope("a", 1, told_by="a"), Scope("b"), "a"),
            (Scope("a", 1, told_by="a"), Scope("b", 2, told_by="b"), "a/b"),
            (Scope("a", 1, told_by="a"), Scope("b", 2), None),
            (Scope("a"), Scope("b", 2, told_by="b"), "a/b"),
        ],
    )
    def test_who_told_the_step(self, outer, inner, told_by):
        assert inner.inside(outer).told_by == told_by
