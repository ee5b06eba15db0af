"""Pretend that this machine has an H100, as far as Inductor and Triton ask for one to generate and compile code."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._inductor.utils
import torch.utils._triton
import triton
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import config
from torch._inductor.runtime import triton_helpers
from triton.backends.compiler import GPUTarget

ARCHITECTURE = "sm_90"
NUM_SMS = 132
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=NUM_SMS,
    total_memory=80 * 2**30,
    warp_size=32,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    L2_cache_size=50 * 2**20,
    gcnArchName="",
)
DRIVER = SimpleNamespace(
    get_current_target=lambda: GPUTarget("cuda", 90, 32),
    get_current_device=lambda: 0,
    get_device_interface=lambda: torch.cuda,
    get_active_torch_device=lambda: torch.device("cuda", 0),
)
ANSWERS: dict[Any, dict[str, Any]] = {
    torch.cuda: {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": H100,
        "get_device_capability": (9, 0),
        "get_arch_list": [ARCHITECTURE],
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "synchronize": None,
        "_lazy_init": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
    },
    CudaInterface: {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": H100,
        "get_compute_capability": 90,
        "is_triton_capable": True,
        "raise_if_triton_unavailable": None,
    },
    CudaInterface.Worker: {"current_device": 0, "get_device_properties": H100},
    triton_helpers: {"set_driver_to_gpu": None},
}
CACHES = (torch.utils._triton, torch._inductor.utils)  # modules that remember what they were answered


@contextmanager
def pretended_h100() -> Iterator[None]:
    """Inside, code can be generated and compiled for an H100; it cannot be loaded."""
    with ExitStack() as stack:
        for owner, answers in ANSWERS.items():
            for name, value in answers.items():
                answer: Any = mock.Mock(return_value=value)
                stack.enter_context(
                    mock.patch.object(owner, name, answer if owner is not CudaInterface else staticmethod(answer))
                )
        stack.enter_context(mock.patch.object(torch.version, "cuda", "13.0"))
        stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", DRIVER))
        stack.enter_context(config.patch(_NO_LOADING))
        stack.callback(_forget_answers)
        _forget_answers()
        yield


_NO_LOADING = {"fx_graph_cache": False, "fx_graph_remote_cache": False, "compile_threads": 1, "use_static_cuda_launcher": False}


def _forget_answers() -> None:
    for module in CACHES:
        _clear_caches(module)


def _clear_caches(module: ModuleType) -> None:
    for value in vars(module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()
