"""The ways in which ranks share a model, as users set them up; where diffusers refuses a CPU, its check is stood in for.

Also on paper: one process counts what it would be as one of any number of ranks, with nobody to communicate with.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.hooks import tensor_parallel
from diffusers.models import attention_dispatch
from diffusers.models.modeling_utils import TensorParallelConfig
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor


def share(model: nn.Module, way: str) -> None:
    """Share ``model`` between all ranks, in place.

    Args:
        model: of diffusers; it needs a ``_tp_plan`` for "tensor", and a ``_cp_plan`` for "ulysses" and "ring".
        way: one of ``WAYS``.
    """
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # it says of each model that sharing is experimental
    try:
        WAYS[way](model)
    finally:
        diffusers_logging.set_verbosity(before)


@contextmanager
def one_of(world_size: int) -> Iterator[None]:
    """Be rank 0 of a group in which nothing is communicated, to trace and count; what is computed meanwhile is wrong."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend, too

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed.*")
            yield
    finally:
        dist.destroy_process_group()


def _tensor(model: Any) -> None:
    devices = (*tensor_parallel._SUPPORTED_TP_DEVICES, "cpu")
    with one_device_per_rank(), mock.patch.object(tensor_parallel, "_SUPPORTED_TP_DEVICES", devices):
        model.enable_parallelism(config=TensorParallelConfig(tp_degree=dist.get_world_size()))


def _ulysses(model: Any) -> None:
    with one_device_per_rank():
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=dist.get_world_size()))


def _ring(model: Any) -> None:
    attention_dispatch._native_attention_forward_op = _with_log_sum_exp  # for good, since it is called when the model is
    with one_device_per_rank():
        model.enable_parallelism(config=ContextParallelConfig(ring_degree=dist.get_world_size()))


@contextmanager
def one_device_per_rank() -> Iterator[None]:
    """Count the CPU as a device where there is no other: diffusers divides by the number of accelerators."""
    count = max(torch.accelerator.device_count(), 1)
    with mock.patch.object(torch.accelerator, "device_count", return_value=count):
        yield


_native_attention = attention_dispatch._native_attention_forward_op


def _with_log_sum_exp(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *options: Any, **kwargs: Any) -> Any:
    """Diffusers' native attention has none, which a ring needs, and gives no mask to; on a CUDA device other backends have it."""
    return_lse = options[5] if len(options) > 5 else kwargs.get("return_lse", False)
    if not return_lse:
        return _native_attention(ctx, query, key, value, *options, **kwargs)
    assert options[0] is None
    query, key, value = (x.permute(0, 2, 1, 3) for x in (query, key, value))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    return out.permute(0, 2, 1, 3), lse.permute(0, 2, 1)


def simple_fsdp(model: nn.Module) -> None:
    """Fully sharded data parallel inside the graph, as torchtitan's SimpleFSDP: a weight is a shard of its first dimension, and
    gathered where it is read.
    """
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in list(model.modules()):
        parameters = dict(module.named_parameters(recurse=False))
        for name, parameter in parameters.items():
            module.register_parameter(name, nn.Parameter(distribute_tensor(parameter, mesh, [Shard(0)]), requires_grad=False))
        if parameters:
            gathering = {name: property(_gathered(name)) for name in parameters}
            module.__class__ = type(module.__class__.__name__, (module.__class__,), gathering)


def _gathered(name: str) -> Callable[[nn.Module], Tensor]:
    def gathered(module: nn.Module) -> Tensor:
        parameter: Any = module._parameters[name]
        weight: Tensor = parameter.redistribute(placements=[Replicate()]).to_local()
        return weight

    return gathered


WAYS = {"tensor": _tensor, "ulysses": _ulysses, "ring": _ring, "simple_fsdp": simple_fsdp}
