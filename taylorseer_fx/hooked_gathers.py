"""Weights that hooks gather, around compiled code rather than in it: all of them, even before a forecast step that reads few."""

import sys
from collections.abc import Iterator

import torch
from torch import nn

from taylorseer_fx.compat import modules_with_state


def bytes_gathered_by_hooks() -> int:
    """The bytes of all weights that ``fully_shard`` shards in this process, if some are gathered at this moment, as in a forward;
    else 0.
    """
    if "torch.distributed.fsdp" not in sys.modules or not torch.distributed.is_initialized():
        return 0
    parameters = {id(parameter): parameter for parameter in _sharded_parameters()}.values()
    tensor = sys.modules["torch.distributed.tensor"].DTensor
    if all(isinstance(parameter, tensor) for parameter in parameters):
        return 0
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _sharded_parameters() -> Iterator[nn.Parameter]:
    sharded = sys.modules["torch.distributed.fsdp"].FSDPModule
    for module in modules_with_state():
        if isinstance(module, sharded):
            yield from module.parameters()
