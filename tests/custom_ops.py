"""Operators as inference engines have them: residual adds in one kernel, into which torch cannot see."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from taylorseer_fx.passes.residual_ops import REGISTERED


@torch.library.custom_op("taylorseer_tests::gated_add", mutates_args=())
def gated_add(x: Tensor, f: Tensor, gate: Tensor) -> Tensor:
    return x + f * gate


@torch.library.custom_op("taylorseer_tests::add_and_norm", mutates_args=())
def add_and_norm(x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """The sum, and what the next layer reads."""
    return x + f, (x + f).sigmoid()


@torch.library.custom_op("taylorseer_tests::gated_add_", mutates_args=("x",))
def gated_add_(x: Tensor, f: Tensor, gate: Tensor) -> None:
    x.add_(f * gate)


gated_add.register_fake(lambda x, f, gate: torch.empty_like(x))
add_and_norm.register_fake(lambda x, f: (torch.empty_like(x), torch.empty_like(x)))


def as_add(x: Tensor, f: Tensor, gate: Tensor) -> Tensor:
    return x + f * gate


def is_traced() -> bool:
    """Can torch's encoder layer in one operator be a part of a traced graph?"""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("aten::_transformer_encoder_layer_fwd", "Meta"))


@contextmanager
def nothing_registered() -> Iterator[None]:
    """As in a new process, inside and after."""
    REGISTERED.clear()
    try:
        yield
    finally:
        REGISTERED.clear()
