"""taylorseer_fx: a ``torch.compile`` backend that lets Diffusion Transformers forecast most of their denoising steps.

accelerate(pipe, speedup=5.0)                                          # a pipeline of diffusers
model = torch.compile(model, backend=taylorseer_backend(order=2))      # what it is made of

Names are loaded when they are used: torch's compiler, which most of them need, takes seconds to import.
"""

import importlib
import typing

from taylorseer_fx.version import __version__

if typing.TYPE_CHECKING:
    from taylorseer_fx.acceleration import accelerate
    from taylorseer_fx.backend import Stats, TaylorSeerBackend
    from taylorseer_fx.calibration import Calibration, calibrate
    from taylorseer_fx.entry import taylorseer_backend
    from taylorseer_fx.errors import (
        ConfigError,
        NoRegionsError,
        NothingCompiledError,
        PassError,
        RanksDisagreeError,
        StreamLimitError,
        StreamStepError,
        TaylorSeerError,
        TaylorSeerWarning,
    )
    from taylorseer_fx.explain import Report
    from taylorseer_fx.handle import Acceleration, Explanation
    from taylorseer_fx.judging import Trial
    from taylorseer_fx.numbers import FeatureInfo, RegionInfo
    from taylorseer_fx.plan_file import PlanFile
    from taylorseer_fx.planning import Plan, plan
    from taylorseer_fx.residual_ops import register_residual_op
    from taylorseer_fx.stream_stats import StreamStats

_MODULES = {
    "acceleration": ["accelerate"],
    "backend": ["Stats", "TaylorSeerBackend"],
    "entry": ["taylorseer_backend"],
    "calibration": ["Calibration", "calibrate"],
    "errors": [
        "ConfigError",
        "NoRegionsError",
        "NothingCompiledError",
        "PassError",
        "RanksDisagreeError",
        "StreamLimitError",
        "StreamStepError",
        "TaylorSeerError",
        "TaylorSeerWarning",
    ],
    "explain": ["Report"],
    "handle": ["Acceleration", "Explanation"],
    "judging": ["Trial"],
    "numbers": ["FeatureInfo", "RegionInfo"],
    "plan_file": ["PlanFile"],
    "planning": ["Plan", "plan"],
    "residual_ops": ["register_residual_op"],
    "stream_stats": ["StreamStats"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Acceleration",
    "Calibration",
    "ConfigError",
    "Explanation",
    "FeatureInfo",
    "NoRegionsError",
    "NothingCompiledError",
    "PassError",
    "Plan",
    "PlanFile",
    "RanksDisagreeError",
    "RegionInfo",
    "Report",
    "Stats",
    "StreamLimitError",
    "StreamStats",
    "StreamStepError",
    "TaylorSeerBackend",
    "TaylorSeerError",
    "TaylorSeerWarning",
    "Trial",
    "__version__",
    "accelerate",
    "calibrate",
    "plan",
    "register_residual_op",
    "taylorseer_backend",
]

if not typing.TYPE_CHECKING:  # else every name would do

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
