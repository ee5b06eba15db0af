"""The scope of ``with backend.stream(name)``: of this thread and task, and gone at the end of the block."""

import asyncio
import threading

import pytest

from taylorseer_fx.runtime.scope import Scope, ScopeVariable


def test_none_by_default():
    assert ScopeVariable().get() is None


def test_inside_and_after():
    scopes = ScopeVariable()
    with scopes.entered(Scope("cond", None)):
        assert scopes.get() == Scope("cond", None)
    assert scopes.get() is None


def test_nested():
    """The inner one counts; leaving it brings back the outer one."""
    scopes = ScopeVariable()
    with scopes.entered(Scope("outer", 1)):
        with scopes.entered(Scope("inner", 2)):
            assert scopes.get() == Scope("inner", 2)
        assert scopes.get() == Scope("outer", 1)


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
