"""A model whose gates and shifts come from a residual network of the time: they are computed in every step, not extrapolated."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from taylorseer_fx import TaylorSeerBackend
from taylorseer_fx.config import BackendConfig
from tests.models.flux import chroma, chroma_inputs
from tests.reference import HookReference

ORDERS = range(4)
NUM_STEPS = 50


class OrdersBackend(TaylorSeerBackend):
    """A backend of order 0 that runs others of ``ORDERS`` beside it on what it traces, and keeps the output of each."""

    def __init__(self, config: BackendConfig) -> None:
        super().__init__(config)
        self.others = [TaylorSeerBackend(replace(config, order=order)) for order in ORDERS[1:]]
        self.outputs: list[Tensor] = []

    def _compile_traced(self, origin: Any, tag: Any, *traced: Any) -> Any:
        self._steps = [other._compile_traced(origin, tag, *traced).steps for other in self.others]
        return super()._compile_traced(origin, tag, *traced)

    def _install(self, origin: Any, steps: Any) -> Any:
        runs = [backend._install(origin, their) for backend, their in zip(self.others, self._steps, strict=True)]
        own = super()._install(origin, steps)

        def run(args: list[Any]) -> Sequence[Any]:
            others = [other(list(args))[0] for other in runs]
            result: Sequence[Any] = own(args)
            self.outputs = [result[0], *others]
            return result

        run._boxed_call = True  # type: ignore[attr-defined]
        return run


@torch.no_grad()
def test_features_are_in_the_blocks_only():
    """All 50 steps equal the hook reference that forecasts attentions and MLPs of the blocks and nothing else, at every order."""
    model: Any = chroma(num_layers=1)
    modules = [module for block in model.transformer_blocks for module in (block.attn, block.ff, block.ff_context)]
    modules += [block.proj_out for block in model.single_transformer_blocks]
    backend = OrdersBackend(BackendConfig(order=0, compiler="eager"))
    references = [HookReference(model, modules, order) for order in ORDERS]
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the network that is computed is listed, and no reason for a warning
        for step in range(NUM_STEPS):
            inputs = chroma_inputs(step, 0)
            compiled(**inputs)
            for output, reference in zip(backend.outputs, references, strict=True):
                expected = reference(step, inputs)
                torch.testing.assert_close(output, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    for one in (backend, *backend.others):
        assert one.stats().forecast_calls == NUM_STEPS - sum(map(references[0].is_full, range(NUM_STEPS)))
    assert [entry.reason.name for entry in backend.explain().rejected] == ["CONDITIONING"] * 2
    assert "gates and shifts are computed" in str(backend.explain())
