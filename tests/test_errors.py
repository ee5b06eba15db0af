"""Errors as users meet them: of one family, as they are though raised within ``torch.compile``, and with a hint that helps."""

import pickle
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taylorseer_fx import (
    ConfigError,
    NoRegionsError,
    NothingCompiledError,
    PassError,
    TaylorSeerBackend,
    TaylorSeerError,
    TaylorSeerWarning,
    taylorseer_backend,
)
from taylorseer_fx.entry import taylorseer
from taylorseer_fx.passes import pipeline


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Layer(nn.Module):
    """``x + linear(x)``, or the product alone."""

    def __init__(self, residual: bool = True) -> None:
        super().__init__()
        self.linear, self.residual = nn.Linear(8, 8), residual

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x) if self.residual else self.linear(x)


X = torch.ones(3, 8)


def call(backend: Any, *, residual: bool = True, **kwargs: Any) -> Tensor:
    return torch.compile(Layer(residual), backend=backend, **kwargs)(X)


def first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]


class TestRaisedWhileCompiling:
    """Dynamo wraps the errors of other backends as ``BackendCompilerFailed``."""

    @pytest.mark.parametrize("fullgraph", [False, True])
    def test_no_regions(self, fullgraph):
        with pytest.raises(NoRegionsError) as raised:
            call(taylorseer_backend(compiler="eager"), residual=False, fullgraph=fullgraph)
        assert isinstance(raised.value, TaylorSeerError)
        assert first_line(raised.value).startswith("no attention or MLP to forecast in this graph.")
        assert "found 1 such operator and 0 residual adds" in first_line(raised.value)

    def test_by_the_registered_name(self):
        with pytest.raises(ConfigError, match="order must be an int of 0 to 4, got 9"):
            call(taylorseer, options={"order": 9})

    def test_a_pass_that_fails(self, monkeypatch):
        """Dynamo takes off what an error was raised from, so its traceback is among the notes."""

        def fail(*_args: Any) -> None:
            raise ValueError("no such luck")

        monkeypatch.setattr(pipeline, "guard_regions", fail)
        with pytest.raises(PassError) as raised:
            call(taylorseer_backend(compiler="eager"))
        assert "'guard_regions' failed: no such luck" in first_line(raised.value)
        assert "in fail\n" in "".join(traceback.format_exception(raised.value))


MODE = "torch.compile must be called without mode and options, got "


class TestModeAndOptions:
    """Beside a backend object; each hint, followed, is right."""

    @pytest.mark.parametrize(
        ("kwargs", "hint"),
        [
            ({"mode": "max-autotune"}, "the options {'max_autotune': True, 'coordinate_descent_tuning': True} and CUDA graphs"),
            ({"mode": "max-autotune-no-cudagraphs"}, "taylorseer_backend(compiler_options={...})"),
            (
                {"mode": "reduce-overhead"},
                "This mode is no options and CUDA graphs, which are made without asking: leave it out.",
            ),
            ({"mode": "no-such-mode"}, "list_mode_options() lists the modes"),
            ({"options": {"order": 2, "max_autotune": True}}, "(order=2, compiler_options={'max_autotune': True})"),
        ],
    )
    def test_beside_a_backend_object(self, kwargs, hint):
        with pytest.raises(ConfigError) as raised:
            call(taylorseer_backend(compiler="eager"), **kwargs)
        assert first_line(raised.value).startswith(MODE)
        assert hint in first_line(raised.value)

    def test_the_options_of_a_mode_are_taken(self):
        options = torch._inductor.list_mode_options("max-autotune-no-cudagraphs")
        assert taylorseer_backend(compiler_options=options).config.compiler_options == options

    def test_a_mode_by_the_registered_name(self):
        with pytest.raises(
            ConfigError, match=r"mode must be left out, got 'max-autotune'.*options=\{'compiler_options': \{...\}\}"
        ):
            taylorseer(None, [], mode="max-autotune")

    def test_an_option_of_inductor_by_the_registered_name(self):
        with pytest.raises(ConfigError, match=r"options=\{'compiler_options': \{'max_autotune': ...\}\}"):
            taylorseer(None, [], options={"max_autotune": True})


def make_all() -> list[TaylorSeerError]:
    return [ConfigError("order", "small", 9), NoRegionsError("a"), NothingCompiledError("b"), PassError("c")]


@pytest.mark.parametrize("error", make_all(), ids=lambda error: type(error).__name__)
def test_an_error_comes_back_from_another_process(error):
    """Pools pickle them."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
    assert isinstance(again, TaylorSeerError)
    assert isinstance(again, RuntimeError)


class TestExplain:
    def test_nothing_compiled(self):
        with pytest.raises(NothingCompiledError, match="call the compiled model once first"):
            taylorseer_backend().explain()

    @pytest.mark.parametrize(("shapes", "which"), [((3,), "the only graph was"), ((3, 5), "all 2 graphs were")])
    def test_every_graph_was_compiled_with_gradients(self, shapes, which):
        backend = taylorseer_backend(compiler="eager")
        compiled = torch.compile(Layer(), backend=backend, dynamic=False)
        with torch.enable_grad(), pytest.warns(TaylorSeerWarning, match="gradients are enabled"):
            [compiled(torch.ones(shape, 8)) for shape in shapes]
        with pytest.raises(NothingCompiledError, match=f"{which} compiled with gradients enabled.*no_grad") as raised:
            backend.explain()
        assert "once first" not in str(raised.value)

    @pytest.mark.parametrize("graph", [1, 99, -2, True, "0"])
    def test_no_such_graph(self, graph):
        backend = compiled_once()
        with pytest.raises(ConfigError) as raised:
            backend.explain(graph=graph)
        assert first_line(raised.value).startswith(f"graph must be None or an int of -1 to 0, got {graph!r}")

    def test_graphs_from_the_end(self):
        assert compiled_once().explain(graph=-1).number == 0


def compiled_once() -> TaylorSeerBackend:
    backend = taylorseer_backend(compiler="eager")
    with backend.stream("one"):
        call(backend)
    return backend
