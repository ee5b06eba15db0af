"""Run generations of a model through the backend, each measured against the hook reference of the model as it is then."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taylorseer_fx import TaylorSeerBackend, taylorseer_backend
from tests.reference import HookReference
from tests.zoo import Inputs, ZooModel, flux, tiny, tiny_inputs

NUM_STEPS = 10
SETTINGS = {"order": 2, "interval": 3, "warmup": 2}
FULL_STEPS = (0, 1, 4, 7)
NUM_FORECASTS = NUM_STEPS - len(FULL_STEPS)
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 4e-3}  # of the last two: about four units of rounding


@dataclass
class Session:
    """A compiled model with its backend.

    ``feature_modules`` is asked at every generation, since an adapter puts modules in the place of others; so is the model, whose
    weights may have changed. ``graphs_per_forward`` counts the calls of graphs with regions.
    """

    model: nn.Module
    inputs: Callable[..., Inputs]
    feature_modules: Callable[[], Sequence[nn.Module]]
    backend: TaylorSeerBackend
    compiled: Callable[..., Any]
    graphs_per_forward: int = 1

    @classmethod
    def of(
        cls,
        zoo: ZooModel,
        *,
        fullgraph: bool = True,
        compiler: str = "eager",
        disabled_passes: Iterable[str] = (),
        **extra: Any,
    ) -> "Session":
        """``extra``: inputs besides the model's usual ones, constant or ``f(step)``."""

        def inputs(step: float, **kwargs: Any) -> Inputs:
            more = {name: value(step) if callable(value) else value for name, value in extra.items()}
            return zoo.inputs(step, **kwargs) | more

        backend = taylorseer_backend(**SETTINGS, compiler=compiler, disabled_passes=disabled_passes)
        compiled = torch.compile(zoo.model, backend=backend, fullgraph=fullgraph)
        return cls(zoo.model, inputs, lambda: zoo.feature_modules, backend, compiled)

    def generate(self, seed: int = 0) -> list[Tensor]:
        return [first_of(self.compiled(**self.inputs(step, seed=seed))).clone() for step in range(NUM_STEPS)]

    def expected(self, seed: int = 0) -> list[Tensor]:
        reference = HookReference(self.model, self.feature_modules(), **SETTINGS)
        return [reference(step, self.inputs(step, seed=seed)) for step in range(NUM_STEPS)]

    def check(self, tolerance: float = ROUNDING[torch.float32]) -> list[Tensor]:
        """Two generations of the model as it is now: alike bit for bit, every step as the reference's, the others forecast."""
        before = self.backend.stats().forecast_calls
        outputs = self.generate()
        assert equal(self.generate(), outputs), "the second generation differs from the first"
        forecasts = (self.backend.stats().forecast_calls - before) / 2
        assert forecasts == NUM_FORECASTS * self.graphs_per_forward, f"{forecasts} calls were forecast"
        assert_close(outputs, self.expected(), tolerance)
        return outputs

    def assert_all_found(self, zoo: ZooModel) -> None:
        """The newest graph has the regions that the model should have, and none was rejected."""
        report = self.backend.explain()
        kinds = [region.kind for region in report.regions]
        assert {kind: kinds.count(kind) for kind in set(kinds)} == zoo.kinds
        assert sum(len(region.features) for region in report.regions) == zoo.num_features
        assert report.rejected == ()


def first_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def check_runs_plainly(zoo: ZooModel, tolerance: float) -> None:
    """A model whose attention no graph holds in one piece: it runs, right and not forecast, as a warning and explain() say."""
    backend = taylorseer_backend(**SETTINGS, compiler="eager")
    compiled = torch.compile(zoo.model, backend=backend)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        outputs = [first_of(compiled(**zoo.inputs(step))).clone() for step in range(5)]
    assert_close(outputs, [first_of(zoo.model(**zoo.inputs(step))) for step in range(5)], tolerance)
    assert any("does not compile to one graph" in str(warning.message) for warning in said)
    assert backend.stats().forecast_calls == 0
    assert backend.explain().regions == ()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.float() - expected.float()).abs().max() / expected.float().abs().max())


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for step, (a, b) in enumerate(zip(actual, expected, strict=True)):
        error = relative_error(a, b)
        assert error <= tolerance, f"step {step} is off by {error:.2e}"  # a NaN fails too


def assert_differ(left: Sequence[Tensor], right: Sequence[Tensor]) -> None:
    """Every step of one generation is another picture than in the other: what was changed is no detail."""
    errors = [relative_error(a, b) for a, b in zip(left, right, strict=True)]
    assert min(errors) > 0.01, errors


def short_flux(dtype: torch.dtype = torch.float32) -> ZooModel:
    """FLUX of one double and one single block: half the time to compile."""
    zoo = flux(dtype)
    zoo.model.transformer_blocks = zoo.model.transformer_blocks[:1]
    zoo.model.single_transformer_blocks = zoo.model.single_transformer_blocks[:1]
    kinds = {"attention": 1, "mlp": 2, "attention+mlp": 1}
    return ZooModel("flux", zoo.model, zoo.inputs, flux_modules(zoo.model), kinds, 5)


def tiny_zoo() -> ZooModel:
    """The least model: quickest where each layer is a graph of its own, or Inductor is called."""
    model = tiny()
    return ZooModel("tiny", model, tiny_inputs, [model.attention, model.mlp], {"attention": 1, "mlp": 1}, 2)


def flux_modules(model: nn.Module) -> list[nn.Module]:
    """The feature modules of a FLUX as it is now (an adapter wraps ``proj_out``)."""
    modules: list[nn.Module] = []
    for block in model.transformer_blocks:
        modules += [block.attn, block.ff, block.ff_context]
    return modules + [block.proj_out for block in model.single_transformer_blocks]
