"""taylorseer_fx: a ``torch.compile`` backend that lets Diffusion Transformers forecast most of their denoising steps.

accelerate(pipe, speedup=5.0)                                          # a pipeline of diffusers
model = torch.compile(model, backend=taylorseer_backend(order=2))      # what it is made of
"""

from taylorseer_fx.acceleration import accelerate
from taylorseer_fx.backend import Stats, TaylorSeerBackend, taylorseer_backend
from taylorseer_fx.calibration import Calibration, calibrate
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
from taylorseer_fx.version import __version__

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
