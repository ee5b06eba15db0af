"""What is asked of a graph after every stage, and what is said of one that breaks it."""

import pytest
import torch
from torch import fx

from taylorseer_fx.errors import PassError
from taylorseer_fx.passes import pipeline
from taylorseer_fx.passes.emit import copied, graph_module
from taylorseer_fx.passes.ops import aten
from taylorseer_fx.passes.pipeline import run_passes
from taylorseer_fx.passes.specialize import specialize
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.passes.verify import Verifier
from tests.graphs import trace, two_layers

BUFFER = torch.ones(3, 4)


def traced() -> fx.GraphModule:
    model, args = two_layers()
    return trace(model, *args).gm


def with_a_buffer(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy with one input more, after the others."""
    made = copied(gm)
    last = made.graph.find_nodes(op="placeholder")[-1]
    with made.graph.inserting_after(last):
        made.graph.placeholder("buffer").meta["val"] = BUFFER
    return made


def write(gm: fx.GraphModule, into: str, *, at_the_end: bool = True) -> None:
    ops = gm.graph.find_nodes(op="placeholder"), [node for node in gm.graph.nodes if node.op == "call_function"]
    (node,) = [node for node in ops[0] if node.name == into]
    value = ops[1][-1] if at_the_end else node
    with gm.graph.inserting_after(ops[1][-1]) if at_the_end else gm.graph.inserting_before(ops[1][0]):
        gm.graph.call_function(aten.copy_.default, (node, value)).meta["val"] = BUFFER


def test_a_graph_and_its_copy_pass():
    gm = traced()
    verifier = Verifier(gm)
    for graph in (gm, copied(gm), with_a_buffer(gm), gm):
        verifier.check(graph)


def test_a_value_is_missing():
    gm = traced()
    node = next(node for node in gm.graph.nodes if node.op == "call_function")
    verifier = Verifier(gm)
    del node.meta["val"]
    with pytest.raises(ValueError, match=f"no value is known of {node.name}"):
        verifier.check(gm)


def test_what_has_no_value_when_traced():
    """Torch's checks of sizes that only the data tell."""
    gm = traced()
    with gm.graph.inserting_before(gm.graph.output_node()):
        gm.graph.call_function(aten._assert_scalar.default, (True, "true"))
    Verifier(gm).check(gm)


@pytest.mark.parametrize("is_new", [False, True])
def test_inputs_in_other_places(is_new):
    """Neither may those that there were change places, nor new ones come between them."""
    gm = traced()
    verifier = Verifier(gm)
    verifier.check(gm)
    graph, env = fx.Graph(), dict[fx.Node, fx.Node]()
    if is_new:
        graph.placeholder("first").meta["val"] = BUFFER
    else:
        for node in reversed(gm.graph.find_nodes(op="placeholder")):
            env[node] = graph.node_copy(node)
    graph.output(graph.graph_copy(gm.graph, env))
    with pytest.raises(ValueError, match="the inputs changed places"):
        verifier.check(graph_module(gm, graph))


class TestWrites:
    def test_a_buffer_at_the_end(self):
        gm = with_a_buffer(traced())
        verifier = Verifier(traced())
        write(gm, "buffer")
        verifier.check(gm, stores=True)
        with pytest.raises(ValueError, match="written to in a graph that was functional: by copy_"):
            verifier.check(gm)

    def test_a_buffer_that_is_read_afterwards(self):
        gm = with_a_buffer(traced())
        write(gm, "buffer", at_the_end=False)
        Verifier(traced()).check(gm, stores=True)
        (buffer,) = [node for node in gm.graph.find_nodes(op="placeholder") if node.name == "buffer"]
        with gm.graph.inserting_before(gm.graph.output_node()):
            gm.graph.call_function(aten.neg.default, (buffer,)).meta["val"] = BUFFER
        with pytest.raises(ValueError, match="read after they were written to: by neg"):
            Verifier(traced()).check(gm, stores=True)

    def test_an_input_of_the_model(self):
        gm = traced()
        write(gm, gm.graph.find_nodes(op="placeholder")[0].name)
        with pytest.raises(ValueError, match="was functional: by copy_"):
            Verifier(traced()).check(gm, stores=True)
        Verifier(gm).check(gm)  # unless the model wrote it itself


def test_the_pass_at_fault_is_named(monkeypatch):
    """In these tests, as in debug mode, every stage is verified."""

    def without_values(guarded, kind: StepKind):
        made = specialize(guarded, kind)
        for node in made.graph.nodes:
            node.meta.pop("val", None)
        return made

    monkeypatch.setattr(pipeline, "specialize", without_values)
    model, args = two_layers()
    graph = trace(model, *args)
    with pytest.raises(PassError, match="'specialize_full' failed: no value is known of"):
        run_passes(graph.gm, graph.static_inputs, Storage(1))
