"""Compile Triton kernels for sm_90, and read off what they need of a multiprocessor."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton.backends.nvidia
from torch._inductor.codecache import PyCodeCache

from benchmarks.cuda_codegen.pretending import ARCHITECTURE, H100

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
WARP = 32
MAX_WARPS = H100.max_threads_per_multi_processor // WARP


@dataclass(frozen=True)
class Usage:
    """What one way to launch a kernel needs. ``stack``, in bytes a thread, holds what registers were ``spilled`` to, and arrays
    such as sine and cosine use for large arguments.
    """

    config: str
    num_warps: int
    registers: int
    stack: int
    spilled: int

    @property
    def occupancy(self) -> float:
        """The share of a multiprocessor's warps that its registers are enough for, in whole blocks."""
        registers_a_warp = -(-self.registers // 8) * 8 * WARP
        warps = H100.regs_per_multiprocessor // registers_a_warp // 4 * 4
        return min(warps, MAX_WARPS) // self.num_warps * self.num_warps / MAX_WARPS


def usages(name: str, source: str) -> list[Usage]:
    """One for each configuration that Inductor would choose from; to be called in ``pretended_h100``."""
    kernel = getattr(PyCodeCache.load(source), name)
    kernel.precompile(warm_cache_only=True)
    return [_usage(str(result.config.kwargs), result.config.num_warps, result.kernel.asm) for result in kernel.compile_results]


def _usage(config: str, num_warps: int, assembly: Mapping[str, Any]) -> Usage:
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder) / "kernel.cubin", Path(folder) / "kernel.ptx"
        cubin.write_bytes(assembly["cubin"])
        registers, stack = _numbers(r"REG:(\d+) STACK:(\d+)", "cuobjdump", "-res-usage", cubin)
        spilled = 0
        if stack:
            ptx.write_text(assembly["ptx"])
            command = ("ptxas", "-v", f"--gpu-name={ARCHITECTURE}a", ptx, "-o", cubin)
            (spilled,) = _numbers(r"(\d+) bytes spill stores", *command)
    return Usage(config, num_warps, registers, stack, spilled)


def _numbers(pattern: str, tool: str, *arguments: str | Path) -> list[int]:
    done = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    found = re.search(pattern, done.stdout + done.stderr)
    assert found is not None, done.stdout + done.stderr
    return [int(number) for number in found.groups()]
