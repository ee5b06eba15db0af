"""Ranks that share a model agree on the step that each is at, before they communicate in it.

    rank 0    step 5: forecast    step 6: full ---- agree? ---- no: an error
    rank 1    reset()             step 0: full ---- agree? ---- no: an error

A forecast step may communicate nothing at all. So a rank that begins anew while the others go on (a reset, an exception in a
call) hangs nowhere: its collectives meet those of another step, and all results are wrong from then on. Steps that communicate
are therefore preceded by one tiny collective on the host, in a group of its own, so that it meets nothing but its like.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from taylorseer_fx.compat import process_group
from taylorseer_fx.errors import RanksDisagreeError
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.runtime.ticks import Tick


@dataclass(frozen=True)
class Position:
    """Where a rank stands: the stream, by number and by its name's digest; the step, and a digest of what it was told by; the
    first and the last full step of the generation; and whether this one is full. How many generations there were before counts
    for nothing.
    """

    stream: int
    name: int
    step: int
    time: int
    first_step: int
    last_full: int
    is_full: int

    @classmethod
    def of(cls, tick: Tick, first_step: int, last_full: int, kind: StepKind) -> "Position":
        """``last_full`` counts from ``first_step``, as the states of streams do."""
        name, number = tick.stream
        return cls(
            number, _digest(name), tick.step, _digest(tick.time), first_step, first_step + last_full, int(kind is StepKind.FULL)
        )

    def __str__(self) -> str:
        kind = "full" if self.is_full else "forecast"
        history = "the first" if self.step == self.first_step else f"begun at {self.first_step}, last full {self.last_full}"
        return f"step {self.step} ({kind}; {history})"


def _digest(value: str | tuple[float, ...] | None) -> int:
    """The same in every process."""
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:7], "big")


@dataclass
class Agreement:
    """The groups in which ranks agree, by the name of the model's group, with that itself; and those that did in this forward."""

    _peers: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    _tick: Tick | None = None
    _agreed: set[str] = field(default_factory=set)

    def require(self, groups: Sequence[str], tick: Tick, position: Callable[[], Position]) -> None:
        """Called by a graph that communicates in ``groups``; the first of a forward that does counts for all of it.

        Raises:
            RanksDisagreeError: another rank stands elsewhere, or did not answer. It is raised on every rank of the group.
        """
        if self._tick is not tick:
            self._tick, self._agreed = tick, set()
        for group in groups:
            if group not in self._agreed:
                self._compare(group, position())
                self._agreed.add(group)

    def _compare(self, group: str, position: Position) -> None:
        peers = self._peers_of(group)
        if peers is None:
            return
        own = torch.tensor(astuple(position), dtype=torch.int64)
        every: list[Tensor] = [torch.empty_like(own) for _ in range(dist.get_world_size(peers))]
        try:
            dist.all_gather(every, own, group=peers)
        except RuntimeError as error:
            raise RanksDisagreeError(_NO_ANSWER.format(rank=dist.get_rank(), position=position)) from error
        positions = [Position(*each.tolist()) for each in every]
        if any(each != position for each in positions):
            ranks = dist.get_process_group_ranks(peers)
            stands = "; ".join(f"rank {rank} at {_text(each, positions)}" for rank, each in zip(ranks, positions, strict=True))
            raise RanksDisagreeError(_DISAGREE.format(stands=stands))

    def _peers_of(self, group: str) -> Any:
        """A group of the same ranks, on the host; None for torch's fake one, which is this rank only. Made by its members, when
        they first need it, and anew where the model's group was.
        """
        own = process_group(group)
        known, peers = self._peers.get(group, (None, None))
        if known is not own:
            peers = None
            if dist.get_backend(own) != "fake":
                ranks = dist.get_process_group_ranks(own)
                peers = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
            self._peers[group] = own, peers
        return peers


def _text(position: Position, positions: Sequence[Position]) -> str:
    """With the stream, where these differ; with the time, where only it does."""
    if len({(each.stream, each.name) for each in positions}) > 1:
        return f"{position} of stream {position.stream}, name {position.name % 2**16:04x}"
    is_same = len({replace(each, time=0) for each in positions}) == 1
    return f"{position} at time {position.time % 2**16:04x}" if is_same else str(position)


_DISAGREE = (
    "the ranks that share this model are not at the same step: {stands}. One of them began anew (a reset, an exception in a "
    "call, a stream that was given up) or was called otherwise, and results of different steps would be mixed. Nothing of this "
    "step was computed, and each rank begins anew with its next call. Begin the run again on all of them."
)

_NO_ANSWER = (
    "rank {rank} is at {position}, and at least one of the ranks that share this model did not come to a step in which they "
    "communicate: it ended, or waits elsewhere. Nothing of this step was computed."
)
