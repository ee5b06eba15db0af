"""Torch's private names, all that this package uses and what for, so that a torch that lacks one is met here and nowhere else.

All are in torch 2.11, 2.12 and 2.13, on which `make matrix` runs the tests; where one is younger, it says so.
"""

import copyreg
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_void_p
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import ShortenTraceback  # such an error reaches the user as it is
from torch._dynamo.utils import counters as compile_counters  # of this process: graphs, hits and misses of caches
from torch._dynamo.utils import dynamo_timed
from torch._functorch import config as functorch_config  # of AOTAutograd's cache
from torch._functorch.compile_utils import fx_graph_cse
from torch._inductor.async_compile import AsyncCompile  # its kernels are waited for later
from torch._inductor.compile_fx import compile_fx, compile_fx_inner  # we take the place of the latter within the former
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.inductor_prims import force_stride_order
from torch._inductor.output_code import CompiledFxGraph, OutputCode  # what AOTAutograd stores
from torch._inductor.runtime.cache_dir_utils import cache_dir as inductor_cache_folder
from torch._inductor.runtime.cache_dir_utils import temporary_cache_dir as inductor_cache_in
from torch._library.simple_registry import singleton as library_registry
from torch._logging._internal import trace_structured
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch._prims_common import compute_elementwise_output_logical_to_physical_perm as physical_order
from torch._prims_common import get_computation_dtype
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.cuda._utils import _get_cuda_library as cuda_driver
from torch.fx._lazy_graph_module import _LazyGraphModule as LazyGraphModule
from torch.fx.experimental.symbolic_shapes import _suppress_guards as suppress_guards
from torch.utils import _pytree as pytree

try:  # storing compiled graphs; where a torch has no such thing, every process traces
    from torch._functorch._aot_autograd.aot_autograd_result import BundledCompiledForward
    from torch._functorch._aot_autograd.autograd_cache import BypassAOTAutogradCache
    from torch.fx._graph_pickler import GraphPickler
    from torch.fx._graph_pickler import Options as PicklerOptions

    CAN_STORE = hasattr(torch.compiler.config, "cache_key_tag")
except ImportError:
    BundledCompiledForward = BypassAOTAutogradCache = GraphPickler = PicklerOptions = None  # type: ignore[assignment,misc]
    CAN_STORE = False

__all__ = [
    "CAN_STORE",
    "COMPILED_CALL",
    "ISOLATED",
    "AsyncCompile",
    "BundledCompiledForward",
    "BypassAOTAutogradCache",
    "CompiledFxGraph",
    "DisableAutocast",
    "FakeTensorMode",
    "FunctionalTensorMode",
    "GraphPickler",
    "HigherOrderOperator",
    "LazyGraphModule",
    "OpOverload",
    "OpOverloadPacket",
    "OperatorNamespaces",
    "OutputCode",
    "PicklerOptions",
    "ShortenTraceback",
    "TracingContext",
    "compile_counters",
    "compile_fx",
    "compile_fx_inner",
    "current_cuda_stream",
    "detect_fake_mode",
    "dynamo_config",
    "dynamo_timed",
    "force_stride_order",
    "foreach_copy_",
    "function_modes",
    "functorch_config",
    "fx_graph_cse",
    "get_computation_dtype",
    "inductor_cache_folder",
    "inductor_cache_in",
    "inductor_compile",
    "inductor_config",
    "library_registry",
    "list_mode_options",
    "list_options",
    "meshes_stored_without_hash",
    "modules_with_state",
    "new_cuda_stream",
    "physical_order",
    "pick_vec_isa",
    "process_group",
    "pytree",
    "release_pool",
    "same_addresses",
    "select_decomp_table",
    "suppress_guards",
    "trace_structured",
    "without_function_mode",
]

dynamo_config: Any = torch._dynamo.config  # ConfigModules, which annotations know as modules
inductor_config: Any = torch._inductor.config

TracingContext = torch._guards.TracingContext
detect_fake_mode = torch._guards.detect_fake_mode
DisableAutocast: Any = torch._C._DisableAutocast
foreach_copy_: Any = torch._foreach_copy_  # one kernel for many small tensors
function_modes: Callable[[], list[Any]] = torch.overrides._get_current_function_mode_stack
without_function_mode: Callable[[], Any] = torch.overrides._pop_mode_temporarily  # less the innermost of them
inductor_compile: Callable[..., Any] = torch._inductor.compile
list_options = torch._inductor.list_options
list_mode_options = torch._inductor.list_mode_options
COMPILED_CALL = "_compiled_call_impl"  # what Module.compile() sets on the instance
# Compilations of its own for one call of torch.compile, from torch 2.13 on; else all instances of a class share a limit of 8.
ISOLATED = {"isolate_recompiles": True} if "isolate_recompiles" in signature(torch.compile).parameters else {}
OperatorNamespaces = (torch._ops._OpNamespace, torch._ops._Ops)


def process_group(name: str) -> Any:
    """The process group that graphs call by ``name``."""
    resolve: Callable[[Any], Any] = getattr(torch.distributed.distributed_c10d, "_resolve_process_group")  # noqa: B009
    return resolve(name)


@contextmanager
def meshes_stored_without_hash() -> Iterator[None]:
    """Pickle a device mesh without the hash that it keeps, which differs from process to process. AOTAutograd's key of a graph
    that takes DTensors has the mesh in it, and so never found the graph again (torch 2.13). A mesh that lacks it makes its own.
    """
    module = sys.modules.get("torch.distributed.device_mesh")
    kind: Any = getattr(module, "DeviceMesh", None)
    if kind is None or kind in copyreg.dispatch_table:
        yield
        return

    def reduce(mesh: Any) -> tuple[Any, ...]:
        function, arguments, state, *rest = mesh.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return function, arguments, {**state, "_hash": None}, *rest

    copyreg.pickle(kind, reduce)
    try:
        yield
    finally:
        copyreg.dispatch_table.pop(kind, None)


def modules_with_state() -> list[torch.nn.Module]:
    """The modules that ``fully_shard`` and its like keep a state for, in this process."""
    return list(torch.distributed._composable_state._module_state_mapping)


def _python_same_addresses(inputs: list[Any], addresses: list[int | None], positions: list[int]) -> bool:
    return list(map(Tensor.data_ptr, map(inputs.__getitem__, positions))) == list(map(addresses.__getitem__, positions))


# In builds of torch with CUDA this is one loop in C++, as Inductor has it for the same purpose.
same_addresses: Callable[[list[Any], list[int | None], list[int]], bool] = getattr(
    torch._C, "_tensors_data_ptrs_at_indices_equal", _python_same_addresses
)


def current_cuda_stream(device_index: int) -> int:
    """Its address, without making the object that ``torch.cuda.current_stream`` returns: it is asked for in every call."""
    return int(torch._C._cuda_getCurrentRawStream(device_index))


def new_cuda_stream(device: torch.device) -> Any:
    """A CUDA stream of our own. ``torch.cuda.Stream`` gives out the same 32 in turns, so that others may have used one before, or
    do so meanwhile. It is never destroyed: another could get its address, by which torch knows what belongs to it.
    """
    handle, does_not_wait_for_the_default_one = c_void_p(), 1
    try:
        with torch.cuda.device(device):
            failed = cuda_driver().cuStreamCreate(byref(handle), does_not_wait_for_the_default_one)
    except (OSError, AttributeError):  # a GPU of another maker
        failed = True
    shared: Callable[..., Any] = torch.cuda.Stream
    own: Callable[..., Any] = torch.cuda.ExternalStream
    return shared(device) if failed else own(handle.value, device)


def release_pool(device: torch.device, pool: Any) -> None:
    """Torch leaves an allocator allocating from the pool of a capture that failed, and the pool in use."""
    index = torch.cuda.current_device() if device.index is None else device.index
    torch._C._cuda_endAllocateToPool(index, pool)
    torch._C._cuda_releasePool(index, pool)
