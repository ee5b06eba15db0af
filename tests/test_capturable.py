"""What the operators and inputs of a graph tell about capturing it, before anything runs."""

import pytest
import torch
from torch import fx

from taylorseer_fx.capturable import plan_capture
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
    assert "depends on data" in plan.obstacle
