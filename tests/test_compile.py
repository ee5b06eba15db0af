"""What is different in compiling a forecast step."""

from typing import Any

import pytest
import torch

import taylorseer_fx.backend
import taylorseer_fx.compile
from taylorseer_fx import taylorseer_backend
from taylorseer_fx.compile import CPU_FUSION_SIZE, make_eager
from tests.zoo import tiny, tiny_inputs


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
    """A forecast step stays one graph under wrappers that cannot call a block."""
    folded: list[Any] = []
    monkeypatch.setattr(taylorseer_fx.compile, "fold_repeats", lambda gm, features: folded.append(features) or gm)
    model = tiny()
    for is_set, calls in ((False, 1), (True, 0)):
        torch._dynamo.reset()
        folded.clear()
        compiled = torch.compile(model, backend=taylorseer_backend(compiler="eager"))
        with torch.no_grad(), torch._inductor.config.patch({wrapper: is_set}):
            compiled(**tiny_inputs(0))
        assert len(folded) == calls


def test_buffers_that_are_folded_by(monkeypatch):
    """All of a feature, youngest first."""
    names: list[list[str]] = []

    def fold(gm: torch.fx.GraphModule, features: Any) -> torch.fx.GraphModule:
        names.extend([node.name for node in buffers] for buffers in features)
        return gm

    monkeypatch.setattr(taylorseer_fx.compile, "fold_repeats", fold)
    with torch.no_grad():
        torch.compile(tiny(), backend=taylorseer_backend(order=2, compiler="eager"))(**tiny_inputs(0))
    assert names == [[f"feature{i}_b{age}" for age in range(3)] for i in range(2)]
