"""The results of the region finder: plain frozen data that the later passes and ``explain()`` read."""

import enum
import operator
from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from taylorseer_fx.passes.ops import same_shape
from taylorseer_fx.passes.windows import Window, whole

Nodes = tuple[fx.Node, ...]
Positions = dict[fx.Node, int]


class Kind(enum.Enum):
    """The kind of a region, determined by its operators."""

    ATTENTION = "attention"
    MLP = "mlp"
    BOTH = "attention+mlp"
    STACK = "stack"


class Reason(enum.Enum):
    """A reason why a residual branch is executed in every step instead of being forecast."""

    NEEDED_ELSEWHERE = "all of its heavy operators also feed something that is not forecast"
    NOT_FLOATING = "its feature is not a real floating-point tensor, so it has no Taylor polynomial"
    BEYOND_BREAK = "a graph break lies between its work and its residual add, which are in different graphs"
    OPAQUE = (
        "an operator that cannot be seen into takes and returns a tensor of one shape; if this adds a residual, register it with "
        "taylorseer_fx.register_residual_op"
    )
    FUSED = (
        "an operator of torch that holds attention, an MLP and their residual adds; it is not used after "
        "torch.backends.mha.set_fastpath_enabled(False)"
    )
    CYCLE = "one of its features is needed to compute another, so they cannot be forecast as one"
    CONDITIONING = "it is made from the time and other small inputs alone, so gates and shifts are computed and not extrapolated"
    RIM = "it stands alone on the sample or the output, before or behind the blocks, and is no attention or MLP of theirs"
    BROUGHT_IN = "it is one product of another residual stream's state, and no attention or MLP of the one it is added to"


# Intended: the method loses nothing by them, and there is nothing to do about them, so explain() lists them without a warning.
MEANT = frozenset({Reason.CONDITIONING, Reason.RIM, Reason.BROUGHT_IN})


@dataclass(frozen=True)
class ResidualAdd:
    """``add = trunk + branch``, or a difference: ``trunk`` is undressed and without its ``factors``; ``source`` is the state of
    its residual stream that ``branch`` starts from, and ``root`` the first state of that residual stream. ``is_plain``: the trunk
    is added as it is to a branch of its shape.
    """

    add: fx.Node
    trunk: fx.Node
    source: fx.Node
    branch: fx.Node
    root: fx.Node
    factors: Nodes = ()
    is_plain: bool = True


@dataclass(frozen=True)
class Feature:
    """A tensor that is forecast: a residual branch without its gates, or what a whole stack adds to its residual stream.

    ``stored_window``: the part of ``node`` that a forecast step reads, None if it reads none of it; then nothing is stored.
    ``base``: a tensor that is taken off that part before it is stored, and added to the forecast; it is computed in every step.
    """

    node: fx.Node
    residual: ResidualAdd
    base: fx.Node | None = None
    stored_window: Window | None = ()

    @property
    def window(self) -> Window:
        """``stored_window``, of a feature of which something is stored."""
        assert self.stored_window is not None
        return self.stored_window or whole(self.node)


@dataclass(frozen=True)
class Region:
    """The nodes that only ``features`` need, in graph order, and the outside nodes they read."""

    path: str
    kind: Kind
    features: tuple[Feature, ...]
    nodes: tuple[fx.Node, ...]
    live_ins: tuple[fx.Node, ...]

    def live_in_like(self, feature: Feature) -> fx.Node | None:
        """A live-in of the shape of ``feature``: its residual stream, as a rule."""
        return next((node for node in self.live_ins if same_shape(node, feature.node)), None)


@dataclass(frozen=True)
class Rejected:
    """A residual branch that was found and is not forecast."""

    path: str
    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason.value} ({self.detail})"


@dataclass(frozen=True)
class NearMiss:
    """A sum that is no residual add: the module and the line that it was written in, and why it is none."""

    path: str
    line: str
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.line}: {self.why}"


@dataclass(frozen=True)
class RegionSet:
    """All regions of one graph, in graph order; valid for that graph only.

    In a graph without any, ``num_heavy`` counts the calls in the model, of which torch took ``num_taken_apart`` to pieces that
    are not heavy, and ``near_misses`` are the sums that come nearest to a residual add.
    """

    regions: tuple[Region, ...]
    rejected: tuple[Rejected, ...]
    num_residual_adds: int
    num_heavy: int
    num_taken_apart: int = 0
    near_misses: tuple[NearMiss, ...] = ()

    @property
    def features(self) -> tuple[Feature, ...]:
        return tuple(feature for region in self.regions for feature in region.features)


def positions_of(graph: fx.Graph) -> Positions:
    """The position of every node."""
    return {node: i for i, node in enumerate(graph.nodes)}


def region_border(body: set[fx.Node], positions: Positions, extra: Iterable[fx.Node | None] = ()) -> tuple[Nodes, Nodes]:
    """The nodes of a region and the outside nodes that it reads, ``extra`` among them; both in graph order.

    A node that picks one output of an outside node with several (``getitem`` of the ``split`` of an adaLN) stays with that node,
    so that only tensors cross the border.
    """
    inside = {node for node in body if node.target is not operator.getitem or node.args[0] in body}
    read = {source for node in inside for source in node.all_input_nodes}.union(node for node in extra if node is not None)
    return tuple(sorted(inside, key=positions.__getitem__)), tuple(sorted(read - inside, key=positions.__getitem__))
