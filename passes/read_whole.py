"""Report what a forecast step computes whole though only a part of it is read, since ``narrow`` has no rule for the operator.

    %c = cumsum(%x, 1)            all of it
    %p = slice(%c, 1, 4, 8)       what is read

Read off the finished graph, on demand; most bytes first.
"""

from dataclasses import dataclass

from torch import Tensor, fx

from taylorseer_fx.passes.demands import demanded
from taylorseer_fx.passes.module_path import common_path
from taylorseer_fx.passes.sizes import hint
from taylorseer_fx.passes.window_rules import rule_of
from taylorseer_fx.passes.windows import is_whole


@dataclass(frozen=True)
class ReadWhole:
    """An operator without a rule: its name, the module it is in, and the bytes of its result, which is read in part."""

    op: str
    path: str
    num_bytes: int


def find_read_whole(graph: fx.Graph) -> tuple[ReadWhole, ...]:
    """The operators that ``narrow`` left whole in a graph that it made."""
    found = []
    for node, windows in demanded(graph).items():
        value = node.meta.get("val")
        if node.op != "call_function" or not node.all_input_nodes or not isinstance(value, Tensor) or rule_of(node) is not None:
            continue
        if not all(map(is_whole, windows)):
            num_bytes = value.dtype.itemsize
            for size in value.shape:
                num_bytes *= hint(size)
            found.append(
                ReadWhole(str(getattr(node.target, "overloadpacket", node.target)), common_path([node], [node]), num_bytes)
            )
    return tuple(sorted(found, key=lambda entry: -entry.num_bytes))
