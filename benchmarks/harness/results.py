"""Rows of measurements and their JSON, in a schema of a version."""

import datetime
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

SCHEMA_VERSION = 2
STATUSES = ("ok", "cached nothing", "failed", "not installed")
_REPORTED = ("torch", "diffusers", "taylorseer-fx", "cache-dit", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Row:
    """One method on one workload. Ratios are against plain ``torch.compile`` with every step in full, run right beside it.

    ``full_steps`` were counted. ``ceiling``: FLOPs of the run in full over FLOPs of this one. ``speedup_low`` and ``_high`` are
    the least and the most of the rounds, ``speedup`` their median. ``held_bytes``: tensors kept from step to step;
    ``peak_bytes``: the most alive at once in a run; both without the weights. Fidelity is against the eager run in full from the
    same noise; PSNR and SSIM only where the weights are trained.
    """

    method: str
    family: str
    compiled: bool
    status: str
    reason: str = ""
    note: str = ""
    num_steps: int = 0
    full_steps: tuple[int, ...] = ()
    flops: int = 0
    light_step_flops_share: float | None = None
    ceiling: float | None = None
    seconds: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    full_step_ms: float | None = None
    forecast_step_ms: float | None = None
    compile_seconds: float | None = None
    warm_start_seconds: float | None = None
    held_bytes: int | None = None
    peak_bytes: int | None = None
    graphs: int | None = None
    graph_breaks: int | None = None
    recompiles: int | None = None
    graph_calls_full: float | None = None
    graph_calls_forecast: float | None = None
    repeatable: bool | None = None
    agrees_with_eager: float | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    relative_l2: float | None = None
    trajectory_error: tuple[float, ...] = ()
    class_accuracy: float | None = None
    frechet: float | None = None
    frechet_samples: int | None = None

    @property
    def realised(self) -> float | None:
        """Share of the ceiling that the speed-up reaches."""
        return self.speedup / self.ceiling if self.speedup and self.ceiling else None

    @property
    def counts(self) -> bool:
        """Whether the row may be compared: it ran, and did what it is there for."""
        return self.status == "ok"


@dataclass(frozen=True)
class WorkloadResult:
    """All rows of a workload. ``plain_step_flops``: of a step in full, eager. ``smoothness``: see ``fidelity.smoothness``."""

    workload: str
    reduced: str
    trained: bool
    num_steps: int
    schedule: tuple[int, ...]
    rounds: int
    plain_step_flops: int
    reuse_error: float
    line_error: float
    rows: tuple[Row, ...]
    verdict: str = ""


@dataclass(frozen=True)
class Report:
    """The findings of a run of the harness, and the machine they hold for."""

    workloads: tuple[WorkloadResult, ...]
    machine: Mapping[str, Any] = field(default_factory=lambda: describe_machine())
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Numbers that are not finite become null."""
        return json.dumps(_finite(asdict(self)), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Raises ValueError for another version of the schema, or a row with other fields."""
        content = json.loads(text)
        found = content.get("schema_version")
        if found != SCHEMA_VERSION:
            raise ValueError(f"schema_version must be {SCHEMA_VERSION}, got {found!r}: record the comparison anew")
        workloads = tuple(_workload(entry) for entry in content["workloads"])
        return cls(workloads, content["machine"])


def _workload(entry: dict[str, Any]) -> WorkloadResult:
    rows = tuple(_built(Row, row) for row in entry["rows"])
    result: WorkloadResult = _built(WorkloadResult, entry | {"rows": rows})
    return result


def _built(cls: Any, entry: dict[str, Any]) -> Any:
    known = {f.name for f in fields(cls)}
    if set(entry) != known:
        raise ValueError(f"{cls.__name__} must have exactly its fields, differing: {sorted(set(entry) ^ known)}")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()})


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def describe_machine() -> dict[str, Any]:
    """Date, processor, threads, versions, and the commit where there is one."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: found for name in _REPORTED if (found := _version(name))},
        "commit": _commit(),
    }


def cpu_name() -> str:
    """The name in /proc/cpuinfo, or that which ``platform`` knows."""
    info = Path("/proc/cpuinfo")
    lines: Sequence[str] = info.read_text().splitlines() if info.exists() else ()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
