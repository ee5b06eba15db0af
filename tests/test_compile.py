"""What is different in compiling a forecast step."""

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch._inductor.async_compile import AsyncCompile

import taylorseer_fx.compile
from taylorseer_fx import taylorseer_backend
from taylorseer_fx.compile import kernels_awaited_at_the_end, make_eager
from taylorseer_fx.passes.lower import CPU_FUSION_SIZE
from tests.graphs import op_counts
from tests.turns import in_turns
from tests.zoo import dit, tiny, tiny_inputs


@pytest.mark.parametrize("chosen", [None, 7, 128])
def test_size_of_the_loops_of_a_forecast_step(monkeypatch, chosen):
    """Small on a CPU, as the full step's never are; a size that the user chose is kept, smaller or larger. Inductor's own size is
    no choice, also where somebody set it, as each of our patches does when it ends.
    """
    sizes: dict[str, int] = {}

    def compile_graph(_settings: Any, gm: torch.fx.GraphModule, *rest: Any) -> Any:
        sizes[type(gm).__name__] = torch._inductor.config.max_fusion_size
        return make_eager(gm, *rest)

    monkeypatch.setattr(taylorseer_fx.compile, "_compile_with_inductor", compile_graph)
    usual = torch._inductor.config.max_fusion_size
    compiled = torch.compile(tiny(), backend=taylorseer_backend())
    with torch.no_grad(), torch._inductor.config.patch({"max_fusion_size": chosen or usual}):
        compiled(**tiny_inputs(0))
    assert sizes == {"FullStep": chosen or usual, "ForecastStep": chosen or CPU_FUSION_SIZE}
    assert torch._inductor.config.max_fusion_size == usual


addmm = torch.ops.aten.addmm.default


@pytest.mark.parametrize("wrapper", in_turns(["cpp_wrapper", "fx_wrapper"], weeks=2))
def test_no_calls_where_inductor_has_none(monkeypatch, wrapper):
    """A forecast step is compiled without calls of blocks under wrappers that cannot call one; sums stay sums."""
    calls: list[int] = []
    products: list[int] = []

    def compile_graph(_settings: Any, gm: torch.fx.GraphModule, *rest: Any) -> Any:
        if type(gm).__name__ == "ForecastStep":
            calls.append(op_counts(gm)["invoke_subgraph"])
            products.append(sum(2 in node.meta["val"].shape for node in gm.graph.find_nodes(op="call_function", target=addmm)))
        return make_eager(gm, *rest)

    monkeypatch.setattr(taylorseer_fx.compile, "_compile_with_inductor", compile_graph)
    model = dit(num_layers=5)
    for is_set in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(model.model, backend=taylorseer_backend())
        with torch.no_grad(), torch._inductor.config.patch({wrapper: is_set}):
            compiled(**model.inputs(0))
    assert calls == [5, 0]
    assert products == [0, 0]


def test_no_cuda_graphs_of_inductor(monkeypatch):
    """Switched on for the whole process, they would run inside of ours. Elsewhere they stay on."""
    seen: list[tuple[bool, bool]] = []

    def compile_graph(settings: Any, gm: torch.fx.GraphModule, *rest: Any) -> Any:
        seen.append((settings["cudagraphs"].value, torch._inductor.config.triton.cudagraphs))
        return make_eager(gm, *rest)

    monkeypatch.setattr(taylorseer_fx.compile, "_compile_with_inductor", compile_graph)
    with torch.no_grad(), torch._inductor.config.patch({"triton.cudagraphs": True}):
        torch.compile(tiny(), backend=taylorseer_backend())(**tiny_inputs(0))
        assert torch._inductor.config.triton.cudagraphs
    assert seen == [(False, False)] * 2


class TestKernelsAwaitedAtTheEnd:
    """Of what is compiled for a CPU; the method of Inductor that waits is the same again afterwards."""

    @pytest.fixture
    def waited(self, monkeypatch) -> list[dict[str, Any]]:
        scopes: list[dict[str, Any]] = []
        monkeypatch.setattr(AsyncCompile, "wait", lambda _, scope: scopes.append(scope))
        return scopes

    def test_on_a_cpu(self, waited):
        wait, scope = AsyncCompile.wait, {"kernel": 1}
        with kernels_awaited_at_the_end([torch.empty(2), 3]):
            AsyncCompile().wait(scope)
            assert waited == []
        assert waited == [scope]
        assert AsyncCompile.wait is wait

    def test_elsewhere(self, waited):
        with kernels_awaited_at_the_end([torch.empty(2, device="meta")]):
            AsyncCompile().wait({})
            assert waited == [{}]

    def test_failure(self, waited):
        """Nobody waits for kernels that nobody will call."""
        wait = AsyncCompile.wait
        with suppress(ZeroDivisionError), kernels_awaited_at_the_end([torch.empty(2)]):
            AsyncCompile().wait({})
            raise ZeroDivisionError
        assert waited == []
        assert AsyncCompile.wait is wait
