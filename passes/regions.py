"""What the region finder found: plain frozen data that the later passes and ``explain()`` read."""

import enum
from dataclasses import dataclass

from torch import fx


class Kind(enum.Enum):
    """What a region computes, told from its operators."""

    ATTENTION = "attention"
    MLP = "mlp"
    BOTH = "attention+mlp"


class Reason(enum.Enum):
    """Why a residual branch is executed in every step instead of being forecast."""

    NEEDED_ELSEWHERE = "all of its heavy operators also feed something that is not forecast"
    NOT_FLOATING = "its feature is not a real floating-point tensor, so it has no Taylor polynomial"
    BEYOND_BREAK = "a graph break lies between its work and its residual add, which fullgraph=True may avoid"
    CYCLE = "one of its features is needed to compute another, so they cannot be forecast as one"


@dataclass(frozen=True)
class ResidualAdd:
    """``add = trunk + branch``: ``trunk`` is undressed; ``source`` is the state of its stream that ``branch`` starts from, and
    ``root`` the first state of that stream.
    """

    add: fx.Node
    trunk: fx.Node
    source: fx.Node
    branch: fx.Node
    root: fx.Node


@dataclass(frozen=True)
class Feature:
    """The part of a residual branch that is forecast: the branch without its gates."""

    node: fx.Node
    residual: ResidualAdd


@dataclass(frozen=True)
class Region:
    """The nodes that only ``features`` need, in graph order, and the outside nodes they read."""

    path: str
    kind: Kind
    features: tuple[Feature, ...]
    nodes: tuple[fx.Node, ...]
    live_ins: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Rejected:
    """A residual branch that was found and is not forecast."""

    path: str
    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason.value} ({self.detail})"


@dataclass(frozen=True)
class RegionSet:
    """All regions of one graph, in graph order; valid for that graph only."""

    regions: tuple[Region, ...]
    rejected: tuple[Rejected, ...]
    num_residual_adds: int
    num_heavy: int

    @property
    def features(self) -> tuple[Feature, ...]:
        return tuple(feature for region in self.regions for feature in region.features)
