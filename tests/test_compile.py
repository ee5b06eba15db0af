"""What is different in compiling a forecast step."""

from typing import Any

import pytest
import torch

import taylorseer_fx.backend
from taylorseer_fx import taylorseer_backend
from taylorseer_fx.compile import CPU_FUSION_SIZE, make_eager
from tests.graphs import op_counts
from tests.zoo import dit, tiny, tiny_inputs


@pytest.mark.parametrize("chosen", [None, 7, 128])
def test_size_of_the_loops_of_a_forecast_step(monkeypatch, chosen):
    """Small on a CPU, as the full step's never are; a size that the user chose is kept, smaller or larger. Inductor's own size is
    no choice, also where somebody set it, as each of our patches does when it ends.
    """
    sizes: dict[str, int] = {}

    def compile_graph(gm: torch.fx.GraphModule, *rest: Any) -> Any:
        sizes[type(gm).__name__] = torch._inductor.config.max_fusion_size
        return make_eager(gm, *rest)

    monkeypatch.setattr(taylorseer_fx.backend, "make_eager", compile_graph)
    usual = torch._inductor.config.max_fusion_size
    compiled = torch.compile(tiny(), backend=taylorseer_backend(compiler="eager"))
    with torch.no_grad(), torch._inductor.config.patch({"max_fusion_size": chosen or usual}):
        compiled(**tiny_inputs(0))
    assert sizes == {"FullStep": chosen or usual, "ForecastStep": chosen or CPU_FUSION_SIZE}
    assert torch._inductor.config.max_fusion_size == usual


@pytest.mark.parametrize("wrapper", ["cpp_wrapper", "fx_wrapper"])
def test_no_calls_where_inductor_has_none(monkeypatch, wrapper):
    """A forecast step is compiled without calls of blocks under wrappers that cannot call one."""
    calls: list[int] = []

    def compile_graph(gm: torch.fx.GraphModule, *rest: Any) -> Any:
        if type(gm).__name__ == "ForecastStep":
            calls.append(op_counts(gm)["invoke_subgraph"])
        return make_eager(gm, *rest)

    monkeypatch.setattr(taylorseer_fx.backend, "make_eager", compile_graph)
    model = dit(num_layers=5)
    for is_set in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(model.model, backend=taylorseer_backend(compiler="eager"))
        with torch.no_grad(), torch._inductor.config.patch({wrapper: is_set}):
            compiled(**model.inputs(0))
    assert calls == [4, 0]
