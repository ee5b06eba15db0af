"""The limits on the named streams that a backend holds (number, time, memory), which keep a server's memory bounded.

One stream, here, is the outermost block, ``with backend.stream("request-7")`` or a run of an attached pipeline,
with all that is nested in it: both halves of a request's guidance come and go together. It is in use while such a block is open,
and idle otherwise. Only idle streams are given up, so none is ever within a call; and a thread that holds its block open for a
whole generation keeps its stream for as long. Calls outside any block belong to no named stream: their buffers count as memory,
and are never given up for others.

No thread watches: expired streams are found when the next stream is entered.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from taylorseer_fx.errors import ConfigError, StreamLimitError
from taylorseer_fx.runtime.scope import Scope

POLICIES = ("error", "evict")


@dataclass(frozen=True)
class StreamLimits:
    """The limits given to ``taylorseer_backend``: streams, bytes of all buffers, the policy beyond these, seconds to be idle."""

    max_streams: int | None = None
    total_bytes: int | None = None
    policy: str = "error"
    ttl_s: float | None = None


@dataclass(eq=False)
class Use:
    """A stream: its names, how many of its blocks are open, whether it has buffers, when it was last entered or left."""

    names: set[str] = field(default_factory=set)
    num_open: int = 0
    has_buffers: bool = False
    last_s: float = 0.0


@dataclass(eq=False)
class StreamUses:
    """The named streams of a backend, the one that was not used for longest first.

    ``drop`` frees what the streams of some names hold; ``settle`` is called where no lock is held, after streams may have been
    dropped. ``now`` is a clock that never goes back.
    """

    lock: AbstractContextManager[Any]
    drop: Callable[[Collection[str]], None]
    settle: Callable[[], None]
    notify: Callable[[str, str], None]
    limits: StreamLimits = field(default_factory=StreamLimits)
    now: Callable[[], float] = time.monotonic
    known: "OrderedDict[str, Use]" = field(default_factory=OrderedDict)
    num_evicted: int = 0
    num_expired: int = 0

    def open(self, scope: Scope) -> None:
        """Note that a block is entered.

        Raises:
            StreamLimitError: it begins a further stream, and no other may be given up for it.
        """
        with self.lock:
            self._expire()
            if scope.root not in self.known:
                self._admit(scope.root)
                self.known[scope.root] = Use()
            use = self.known[scope.root]
            use.names.add(scope.name)
            use.num_open += 1
            self._touch(scope.root, use)
        self.settle()

    def close(self, scope: Scope) -> None:
        """Note that a block is left. A stream that was never called in it is forgotten."""
        with self.lock:
            use = self.known.get(scope.root)
            if use is None:
                return
            use.num_open -= 1
            self._touch(scope.root, use)
            if not use.num_open and not use.has_buffers:
                del self.known[scope.root]
                self.drop(use.names)

    def note_buffers(self, scope: Scope | None) -> None:
        """Note that buffers were allocated for a call in ``scope``, whose block is open, if perhaps in another task."""
        if scope is not None:
            use = self.known.setdefault(scope.root, Use(last_s=self.now()))
            use.names.add(scope.name)
            use.has_buffers = True

    def keep(self, names: Collection[str | None]) -> None:
        """Note that only streams of these ``names`` still have buffers."""
        for root, use in list(self.known.items()):
            use.has_buffers = not use.names.isdisjoint(names)
            if not use.num_open and not use.has_buffers:
                del self.known[root]

    def forget(self, chosen: Callable[[str], bool]) -> set[str]:
        """Forget the ``chosen`` names, and return them.

        Raises:
            ConfigError: a block of such a stream is open.
        """
        found: dict[str, set[str]] = {}
        for root, use in self.known.items():
            names = {name for name in use.names if chosen(name)}
            if names and use.num_open:
                raise ConfigError("name", "that of a stream none of whose blocks is open", root, "Leave its block first.")
            found[root] = names
        for root, names in found.items():
            self.known[root].names -= names
            if not self.known[root].names:
                del self.known[root]
        return set().union(*found.values())

    def make_room(self, needed: int, held: Callable[[], int], scope: Scope | None) -> None:
        """Give up idle streams until ``needed`` bytes more than the ``held`` ones fit the budget.

        Raises:
            StreamLimitError: they do not. What the stream of ``scope`` has so far is freed: without the rest it is of no use.
        """
        budget, root = self.limits.total_bytes, scope.root if scope is not None else None
        while budget is not None and held() + needed > budget:
            if not self._evict(root, f"total_memory_budget={budget}"):
                text = _NO_MEMORY.format(stream=_name(root), needed=needed, held=held(), budget=budget)
                if root is not None and root in self.known:
                    self.known[root].has_buffers = False
                    self.drop(self.known[root].names)
                raise StreamLimitError(f"{text} {self._advice('total_memory_budget')}")

    def idle_s(self, name: str | None) -> float | None:
        """Seconds since the last block of a stream was left, 0 while one is open; None outside any block."""
        use = next((use for use in self.known.values() if name in use.names), None)
        if use is None:
            return None
        return 0.0 if use.num_open else self.now() - use.last_s

    def _touch(self, root: str, use: Use) -> None:
        use.last_s = self.now()
        self.known.move_to_end(root)

    def _admit(self, root: str) -> None:
        limit = self.limits.max_streams
        while limit is not None and len(self.known) >= limit:
            if not self._evict(root, f"max_streams={limit}"):
                text = f"there is no room for the stream {_name(root)}: {len(self.known)} are held, and max_streams={limit}."
                raise StreamLimitError(f"{text} {self._advice('max_streams')}")

    def _evict(self, root: str | None, limit: str) -> bool:
        """Give up the stream that was idle for longest; False where that is not wanted or none is idle."""
        idle = next((name for name, use in self.known.items() if not use.num_open and name != root), None)
        if self.limits.policy != "evict" or idle is None:
            return False
        self._give_up(idle)
        self.num_evicted += 1
        self.notify("stream evicted", _EVICTED.format(stream=_name(idle), other=_name(root), limit=limit))
        return True

    def _expire(self) -> None:
        ttl = self.limits.ttl_s
        while ttl is not None:
            oldest = next((name for name, use in self.known.items() if not use.num_open), None)
            if oldest is None or self.now() - self.known[oldest].last_s < ttl:
                return
            self._give_up(oldest)
            self.num_expired += 1
            self.notify("stream expired", _EXPIRED.format(stream=_name(oldest), ttl=ttl))

    def _give_up(self, root: str) -> None:
        self.drop(self.known.pop(root).names)

    def _advice(self, limit: str) -> str:
        evicts = self.limits.policy == "evict"
        what = "all others are in use" if evicts else 'streams are not given up with stream_policy="error"'
        how = "enter a block for each step, so that streams are idle between steps" if evicts else 'set stream_policy="evict"'
        return f"Here {what}: free one that is done with backend.release(name), {how}, or raise {limit}."


def _name(root: str | None) -> str:
    return repr(root) if root is not None else "of calls without a name"


_NO_MEMORY = (
    "there is no memory for the stream {stream}: its buffers take {needed} bytes more, {held} are held by all streams, "
    "and total_memory_budget={budget}."
)

_EVICTED = (
    "the stream {stream} was given up for the stream {other}, because it was idle for longest and {limit}. If it is called "
    "again it begins anew, with a warm-up of full steps. This is reported once; stats().evicted_streams counts them. "
    "backend.release(name) frees a stream that is done."
)

_EXPIRED = (
    "the stream {stream} was given up, since it was idle for stream_ttl={ttl} seconds. If it is called again it begins anew, "
    "with a warm-up of full steps. This is reported once; stats().expired_streams counts them."
)
