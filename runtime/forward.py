"""Group the calls of compiled graphs into forwards of the model.

A model without graph breaks is one graph, and each call of it a forward. A broken one is several, and a graph may serve several
layers; then a forward is a sequence of *sites*. A site is a place in the model, identified by a weight that the graph
was called with, so it stays the same when Dynamo recompiles for another shape.

    site:     A   B   C   C   A   B   C   C   A ...        A leads; the second C of a forward is the same layer called again
    forward:  0   0   0   0   1   1   1   1   2
"""

from dataclasses import dataclass, field

from taylorseer_fx.runtime.conditioning import Content, Key, Sample
from taylorseer_fx.runtime.scope import Reading, Scope
from taylorseer_fx.runtime.ticks import Role, Site, Tick

# The most sites that a forward remembers, should it never seem to end because hooks make new weights each time.
MAX_SITES = 10_000


@dataclass
class Forward:
    """The calls of a forward so far, and the evidence for its stream and step until these are needed; then it is settled."""

    leader: Site
    scope: Scope | None
    number: int = 0
    tick: Tick | None = None
    is_settled: bool = False
    counts: dict[Site, int] = field(default_factory=dict)
    num_calls: int = 0
    reading: Reading = ()
    conditioning: dict[Key, Content] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()

    def add(self, site: Site) -> Role:
        occurrence = self.counts.get(site, 0)
        self.counts[site] = occurrence + 1
        self.num_calls += 1
        return site, occurrence


def begins_forward(site: Site, scope: Scope | None, current: Forward | None, last: Forward | None) -> bool:
    """Is a call of ``site`` the first of a forward, after ``current`` so far and ``last`` before it?

    The leader always begins one, and so does entering a scope. Without the leader (the model took another way through its code)
    the call that exceeds what the last forward did begins one, once all of that was called.
    """
    if current is None or site == current.leader or scope is not current.scope or len(current.counts) > MAX_SITES:
        return True
    if last is None or current.counts.get(site, 0) < last.counts.get(site, 0):
        return False
    return current.num_calls >= last.num_calls
