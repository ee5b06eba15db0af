"""Where one forward ends and the next begins, from the sequence of places that are called."""

import pytest

from taylorseer_fx.runtime import forward as forward_module
from taylorseer_fx.runtime.forward import Forward, begins_forward
from taylorseer_fx.runtime.scope import Scope


def forwards(sites: str, scopes: list[Scope | None] | None = None) -> list[str]:
    """The sequence of sites, cut into forwards."""
    current = last = None
    cut: list[str] = []
    for site, scope in zip(sites, scopes or [None] * len(sites), strict=True):
        if begins_forward(site, scope, current, last):
            last, current = current, Forward(site, scope)
            cut.append("")
        current.add(site)
        cut[-1] += site
    return cut


@pytest.mark.parametrize(
    "expected",
    [
        pytest.param(["A", "A", "A"], id="one-graph"),
        pytest.param(["ABC", "ABC"], id="several"),
        pytest.param(["ABB", "ABB"], id="a-layer-called-twice"),
        pytest.param(["ABC", "AC", "ABC"], id="a-layer-left-out"),
        pytest.param(["ABC", "ABC", "XBC", "XBC"], id="another-leader"),
        pytest.param(["AB", "AB", "CD", "CD"], id="another-model"),
    ],
)
def test_cut(expected):
    assert forwards("".join(expected)) == expected


def test_a_place_called_late_is_taken_to_lead():
    """After all of a forward was called, a new place may be one more of it or the first of the next. Only the latter is safe:
    the former would take a new generation's first call for the old one's last.
    """
    assert forwards("ABABCABC") == ["AB", "AB", "CAB", "C"]


def test_a_scope_entered_anew_begins_one():
    """Two calls of a leader-less part, each in a ``with`` of its own."""
    one, other = Scope("cond"), Scope("cond")
    assert forwards("ABAB", [one, one, other, other]) == ["AB", "AB"]
    assert forwards("AB", [one, other]) == ["A", "B"]


def test_roles_count_the_calls_of_a_site():
    forward = Forward("A", None)
    assert [forward.add(site) for site in "ABBA"] == [("A", 0), ("B", 0), ("B", 1), ("A", 1)]


def test_a_forward_without_end_is_cut(monkeypatch):
    """Places that never come again must not be remembered for ever."""
    monkeypatch.setattr(forward_module, "MAX_SITES", 4)
    assert [len(cut) for cut in forwards("ABCDEFGHIJ")] == [5, 5]
