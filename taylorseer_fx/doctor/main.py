"""``taylorseer-fx doctor``: what a bug report needs, in one paste: versions, machine, compilers, caches, and a self-test."""

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from taylorseer_fx.bench.results import cpu_name
from taylorseer_fx.compat import inductor_cache_folder, inductor_config
from taylorseer_fx.doctor.self_test import NUM_STEPS, TOLERANCE, SelfTest, run_self_test
from taylorseer_fx.text import format_bytes
from taylorseer_fx.versions import versions

Section = Mapping[str, str]
FURTHER = ("transformers", "peft", "accelerate", "torchao", "triton")  # packages that many pipelines run with
SET_BY_TORCH = "TORCHINDUCTOR_CACHE_DIR"  # to what is the cache's line
SETTINGS = ("TORCH", "TRITON", "TAYLORSEER", "PYTORCH", "CUDA_VISIBLE", "OMP_", "CXX")  # how names of variables begin


def examine(write: Callable[[str], None], test: Callable[[str], SelfTest] = run_self_test) -> bool:
    """Write the report, a section at a time; returns whether the self-test passed."""
    for title, section in (("versions", _versions()), ("machine", _machine()), ("compiling", _compiling())):
        write(_format(title, section))
    result = test("cuda" if torch.cuda.is_available() else "cpu")
    write(_format("self-test", _tested(result)))
    return result.passed


def _format(title: str, section: Section) -> str:
    width = max(map(len, section))
    lines = (f"  {name:{width}}  {textwrap.indent(text, ' ' * (width + 4)).lstrip()}" for name, text in section.items())
    return "\n".join([title, *lines, ""])


def _versions() -> Section:
    found = versions()
    return {**found, **{name: _version(name) for name in FURTHER if name not in found}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _machine() -> Section:
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    return {"platform": platform.platform(), "CPU": f"{cpu_name()}, {threads}", "devices": "\n".join(_devices())}


def _devices() -> Iterator[str]:
    if not torch.cuda.is_available():
        other = torch.accelerator.current_accelerator()
        yield str(other) if other is not None else "none beside the CPU"
        return
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield f"cuda:{index} {found.name}, {format_bytes(found.total_memory)}, capability {found.major}.{found.minor}"


def _compiling() -> Section:
    given = {name: value for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS) and name != SET_BY_TORCH}
    return {
        "C++ compiler": _cpp_compiler(),
        "CUDA graphs": _cuda_graphs(),
        "cache": _folder(Path(inductor_cache_folder())),
        "temporary": _folder(Path(tempfile.gettempdir())),
        "variables": "\n".join(f"{name}={value}" for name, value in given.items()) or "none set",
    }


def _cpp_compiler() -> str:
    """The one that Inductor calls; without it nothing compiles for a CPU, nor does a GPU's launcher."""
    names = [name for name in inductor_config.cpp.cxx if name]
    for name in names:
        command = shlex.split(name)
        if path := shutil.which(command[0]):
            return f"{_first_line([path, *command[1:], '--version'])} ({path})"
    return f"not found: {' or '.join(names)}. Install g++, or set CXX to another C++ compiler"


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    return next(iter(done.stdout.splitlines()), f"exit status {done.returncode}")


def _cuda_graphs() -> str:
    if torch.cuda.is_available():
        return "possible: each step kind is captured"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"not possible: torch {torch.__version__} is built without CUDA"
    return "not possible: torch finds no GPU, or no driver that suits it"


def _folder(path: Path) -> str:
    """Report where the folder is, and whether it can be written to, or made first."""
    existing = next((each for each in (path, *path.parents) if each.exists()), path)
    if not os.access(existing, os.W_OK):
        return f"{path}, which cannot be written to"
    free = f"{format_bytes(shutil.disk_usage(existing).free)} free"
    return f"{path}, {free}" + ("" if path.exists() else ", not made yet")


def _tested(result: SelfTest) -> Section:
    lines = {"device": result.device, "steps": _steps(result)}
    if result.problem:
        lines["problem"] = result.problem
    else:
        lines["difference"] = f"{result.error:.1e} of the reference's largest number, at most {TOLERANCE:.0e} is right"
    if result.warnings:
        lines["warnings"] = "\n".join(result.warnings)
    return {**lines, "seconds": f"{result.seconds:.1f}", "result": "passed" if result.passed else "FAILED"}


def _steps(result: SelfTest) -> str:
    stats = result.stats
    captured = f", {stats.captures} CUDA graphs captured" if stats.captures else ""
    return f"{result.schedule}: {stats.full_calls} of {NUM_STEPS} steps full, {stats.forecast_calls} forecast{captured}"
