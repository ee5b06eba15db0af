"""What the operators and inputs of a graph tell about capturing it, before anything runs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from taylorseer_fx.capturable import plan_capture
from taylorseer_fx.runtime.cuda_graphs import CapturePlan
from tests.graphs import hand_made

aten = torch.ops.aten
META, CPU = torch.device("meta"), torch.device("cpu")


def add_graph() -> fx.GraphModule:
    return hand_made(lambda emit, x, y: [emit(aten.add.Tensor, x, y)], (2,), (2,))


def test_nothing_in_the_way():
    """Weights stay in place, the rest is copied; integers are neither tensors nor static."""
    plan = plan_capture(add_graph(), [torch.ones(2), torch.ones(2)], (1,))
    assert (plan.static, plan.others, plan.device, plan.obstacle) == ((1,), (0,), CPU, "")


@pytest.mark.parametrize("where", [0, 1])
def test_an_input_on_the_cpu(where):
    """Beside others on a device (the meta device serves): its value would be baked in. The input is named."""
    inputs = [torch.ones(2, device="meta") for _ in range(2)]
    inputs[where] = torch.ones(2)
    plan = plan_capture(add_graph(), inputs, ())
    assert plan.device == META
    assert plan.obstacle == f"input 'x{where}' is on cpu, others on meta"


def test_integers():
    graph = fx.Graph()
    graph.placeholder("size")
    graph.output(())
    plan = plan_capture(fx.GraphModule({}, graph), [4], (0,))
    assert (plan.static, plan.others, plan.device) == ((), (0,), None)


@pytest.mark.parametrize(("static", "obstacle"), [((), "aten.copy_.default writes into input 'x0'"), ((0,), "")])
def test_writes(static, obstacle):
    """Into a buffer or a weight they are what is wanted; into an input they would go to the staging memory."""
    gm = hand_made(lambda emit, x, y: [emit(aten.copy_.default, x, y)], (2,), (2,))
    assert plan_capture(gm, [torch.ones(2), torch.ones(2)], static).obstacle == obstacle


@pytest.mark.parametrize(("op", "name"), [(aten.nonzero.default, "nonzero"), (aten._local_scalar_dense.default, "_local_scalar")])
def test_operators_that_wait(op, name):
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(op, (x,)),))
    plan = plan_capture(fx.GraphModule({}, graph), [torch.ones(1)], ())
    assert plan.obstacle.startswith(f"aten.{name}")
    assert "data-dependent" in plan.obstacle


class TestTensorsElsewhere:
    """Within the graph of a model on a device (the meta device serves): copies from and to the host wait."""

    def plan(self, build: Callable[[fx.Graph, fx.Node], fx.Node], constant: Tensor | None = None) -> CapturePlan:
        """For a graph over one input on the device; values are as running the operators on it gives them."""
        graph = fx.Graph()
        x = graph.placeholder("x")
        graph.output((build(graph, x),))
        gm = fx.GraphModule({"constant": constant} if constant is not None else {}, graph)
        given = torch.ones(2, device="meta")
        Interpret(gm).run(given)
        return plan_capture(gm, [given], ())

    @pytest.mark.parametrize("non_blocking", [False, True])
    def test_a_constant_that_is_copied(self, non_blocking):
        def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
            kwargs = {"device": META, "non_blocking": non_blocking}
            moved = graph.call_function(aten._to_copy.default, (graph.get_attr("constant"),), kwargs)
            return graph.call_function(aten.mul.Tensor, (x, moved))

        assert self.plan(build, torch.ones(2)).obstacle == "constant gives a tensor on cpu, inputs are on meta"

    def test_a_result_that_is_copied_to_the_host(self):
        def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
            return graph.call_function(aten._to_copy.default, (x,), {"device": CPU})

        with FakeTensorMode(allow_non_fake_inputs=True):  # the meta device has no elements to copy
            assert self.plan(build).obstacle == "aten._to_copy.default gives a tensor on cpu, inputs are on meta"

    def test_made_from_nothing(self):
        """``torch.arange(n).to(device)``: Inductor makes it on the device."""

        def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
            made = graph.call_function(aten.arange.default, (2,), {"device": CPU})
            scaled = graph.call_function(aten.mul.Tensor, (made, 0.5))
            return graph.call_function(
                aten.mul.Tensor, (x, graph.call_function(aten._to_copy.default, (scaled,), {"device": META}))
            )

        assert self.plan(build).obstacle == ""

    def test_a_number(self):
        """``x * torch.tensor(0.5)``: operators on a device take a tensor without dimensions for the number in it."""
        plan = self.plan(
            lambda graph, x: graph.call_function(aten.mul.Tensor, (x, graph.get_attr("constant"))), torch.tensor(0.5)
        )
        assert plan.obstacle == ""


class Interpret(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        n.meta["val"] = super().run_node(n)
        return n.meta["val"]
