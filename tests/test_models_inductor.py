"""Some of the zoo through Inductor, one model a week: ``tests/test_models.py`` runs all of it uncompiled.

What a model would break here is codegen of the variants, not the method.
"""

import warnings
from contextlib import nullcontext
from datetime import date, timedelta
from typing import Any

import pytest
import torch
from torch import Tensor

from taylorseer_fx import TaylorSeerBackend, taylorseer_backend
from tests.models import VARIANTS
from tests.models.variant import Variant
from tests.test_pattern_parity import relative_error, tensors

NUM_STEPS = 6
INTERVAL, WARMUP = 3, 2
FULL_STEPS = (0, 1, 4)  # what these settings mean, written out
ROTATION = (  # of every kind of residual branch one or two, all of them seen to work
    "FluxTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel-dual_attention",
    "LTXVideoTransformer3DModel",
    "AuraFlowTransformer2DModel",
    "StableAudioDiTModel",
    "NucleusMoEImageTransformer2DModel",
    "OmniGenTransformer2DModel",
    "ZImageTransformer2DModel",
    "QwenImageTransformer2DModel",
    "WanTransformer3DModel-t2v",
    "SanaTransformer2DModel",
)


def model_of_week(day: date) -> str:
    """The model that is run in the ISO week of a day. Weeks are counted on from year to year, so that none is left out."""
    return ROTATION[(day.toordinal() - 1) // 7 % len(ROTATION)]


def test_rotation_comes_to_every_model():
    """All of them in any twelve weeks in a row, also where a year ends, and another in each ISO week."""
    days = [date(2026, 1, 1) + timedelta(days=i) for i in range(800)]
    weeks = {day.isocalendar()[:2]: model_of_week(day) for day in days}
    assert all(model_of_week(day) == weeks[day.isocalendar()[:2]] for day in days)
    chosen = list(weeks.values())
    period = len(ROTATION)
    assert all(sorted(chosen[i : i + period]) == sorted(ROTATION) for i in range(len(chosen) - period + 1))


def generate(backend: TaylorSeerBackend, compiled: Any, variant: Variant) -> list[list[Tensor]]:
    outputs = []
    for step in range(NUM_STEPS):
        with backend.stream("generation", step=step) if variant.untimed else nullcontext():
            outputs.append(tensors(compiled(**variant.inputs(step, 0))))
    return outputs


@pytest.mark.inductor
@pytest.mark.parametrize("name", [model_of_week(date.today())])
def test_model(name):
    """Both variants compiled, once: full steps are what the model gives, forecasts exact where nothing changes."""
    variant = VARIANTS[name]
    model = variant.build()
    backend = taylorseer_backend(order=1, interval=INTERVAL, warmup=WARMUP, on_no_regions="warn")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eager = [tensors(model(**variant.inputs(step, 0))) for step in range(NUM_STEPS)]
        eager_constant = tensors(model(**variant.inputs(7, 1)))
        compiled = torch.compile(model, backend=backend, fullgraph=variant.fullgraph)
        first = generate(backend, compiled, variant)
        compiles = backend.stats().compiles
        with torch.compiler.set_stance("fail_on_recompile"):
            second = generate(backend, compiled, variant)
            for step in range(NUM_STEPS):
                with backend.stream("constant", step=step):
                    assert relative_error(tensors(compiled(**variant.inputs(7, 1))), eager_constant) <= 1e-4
    assert variant.broken or compiles == 2
    stats = backend.stats()
    assert stats.compiles == compiles
    assert stats.full_calls == stats.forecast_calls > 0  # three steps of each kind a generation, in every graph
    for step in range(NUM_STEPS):
        error = relative_error(first[step], eager[step])
        assert error <= 1e-4 if step in FULL_STEPS else error > 1e-4, f"step {step} is {error:.2e} from eager"
        assert relative_error(second[step], first[step]) <= 1e-6
