"""Make the graphs of a compiled graph again: nobody keeps them, so the passes run anew on what they were given."""

import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from taylorseer_fx.compat import FakeTensorMode, GraphPickler, PicklerOptions
from taylorseer_fx.passes.emit import graph_module
from taylorseer_fx.passes.pipeline import PassResult, no_garbage_collection, run_passes
from taylorseer_fx.passes.plain_graph import KEPT_METADATA, PlainGraph

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredPasses:
    """The arguments of ``run_passes``, packed for the disk: a loaded graph is compiled already, so they run only if somebody asks
    a report for a graph. DiT-XL/2: 0.35 MB, of 3.8 before they are compressed.
    """

    traced: bytes
    arguments: Mapping[str, Any]

    @classmethod
    @no_garbage_collection()
    def of(cls, traced: fx.GraphModule, arguments: Mapping[str, Any]) -> "StoredPasses | None":
        """None where some operator, constant or size of the graph cannot be stored."""
        try:
            options = PicklerOptions(ops_filter=None, node_metadata_key_filter=KEPT_METADATA.__contains__)
            return cls(zlib.compress(GraphPickler.dumps(_named(traced), options), level=1), arguments)
        except Exception as error:  # a pickler meets everything; without the cache all works as well
            log.info("not cached, since the graph cannot be stored: %s", error)
            return None

    def graph(self) -> fx.GraphModule:
        """The traced graph."""
        mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
        return cast(fx.GraphModule, GraphPickler.loads(zlib.decompress(self.traced), mode))

    def run(self) -> PassResult:
        """Let the passes run again; nobody else has the graphs that they make."""
        return _run_again(self.graph(), self.arguments)


@dataclass(frozen=True)
class KeptPasses:
    """The same where nothing is stored: as cheap to make as a list, and possible for any graph, but only for this process."""

    traced: PlainGraph
    arguments: Mapping[str, Any]

    def graph(self) -> fx.GraphModule:
        """The traced graph."""
        return self.traced.rebuild()

    def run(self) -> PassResult:
        """Let the passes run again."""
        return _run_again(self.graph(), self.arguments)


Passes = StoredPasses | KeptPasses


def _run_again(traced: fx.GraphModule, arguments: Mapping[str, Any]) -> PassResult:
    return run_passes(traced, **arguments, notify=lambda _topic, _message: None)  # reported when it was compiled


def _named(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy of ``gm`` whose module stacks name classes instead of holding them, since local ones cannot be stored."""
    graph, env = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(gm.graph, env))
    for node, copied in env.items():
        copied.meta = dict(node.meta)
        if stack := node.meta.get("nn_module_stack"):
            copied.meta["nn_module_stack"] = {key: (path, "") for key, (path, _) in stack.items()}
    return graph_module(gm, graph)
