"""The table of operators that *are* a residual add, ``x + gate * f`` in one, and how each is written with plain operators.

    before:  %a = addcmul(%x, %g, %f)            after:  %m = mul(%g, %f)        %a = add(%x, %m)
    before:  %a = addmm(%x, %h, %w)              after:  %m = mm(%h, %w)         %a = add(%x, %m)
    before:  %a = residual_gate_add(%x, %f, %g)  after:  what its decomposition does, if one was registered

An engine's own operator is opaque: that it adds ``f`` to ``x`` is known only once it is registered (``register_residual_op``).
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from taylorseer_fx.compat import OpOverload, OpOverloadPacket
from taylorseer_fx.passes.ops import aten, same_shape


def _always(_node: fx.Node) -> bool:
    return True


@dataclass(frozen=True)
class Decomposition:
    """A ``function`` with the arguments and the results of an operator; ``applies`` decides for which nodes."""

    function: Callable[..., Any]
    applies: Callable[[fx.Node], bool] = _always


def _addcmul(x: Tensor, gate: Tensor, branch: Tensor, *, value: float = 1) -> Tensor:
    return x + _scaled(gate * branch, value)


def _addcdiv(x: Tensor, branch: Tensor, divisor: Tensor, *, value: float = 1) -> Tensor:
    return x + _scaled(branch / divisor, value)


def _addmm(x: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _scaled(x, beta) + _scaled(left @ right, alpha)


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor


def _adds_no_bias(node: fx.Node) -> bool:
    """Is the addend of a product as large as the sum? The bias of a linear layer is not. With ``beta=0`` it isn't read at all,
    and may be memory that nobody wrote to.
    """
    x = node.args[0]
    return isinstance(x, fx.Node) and same_shape(x, node) and bool(node.kwargs.get("beta", 1) != 0)


OF_TORCH: dict[OpOverload, Decomposition] = {
    aten.addcmul.default: Decomposition(_addcmul),
    aten.addcdiv.default: Decomposition(_addcdiv),
    aten.addmm.default: Decomposition(_addmm, _adds_no_bias),
}

REGISTERED: dict[OpOverload, Callable[..., Any]] = {}  # by users, for the life of the process


def registered_names() -> tuple[str, ...]:
    """The operators registered so far."""
    return tuple(str(op) for op in REGISTERED)


def residual_ops(registered: Collection[str] | None = None) -> dict[OpOverload, Decomposition]:
    """The table: torch's own operators, and those that users registered; of these, where names are given, no others."""
    users = {op: Decomposition(fn) for op, fn in REGISTERED.items() if registered is None or str(op) in registered}
    return {**OF_TORCH, **users}


def as_overload(op: Any) -> OpOverload | None:
    """The one overload that ``op`` names: an overload, a packet, or what ``torch.library.custom_op`` made. The overloads
    of a packet that write to an argument (``.out``) count only where there are no others.
    """
    op = getattr(op, "_opoverload", op)
    if isinstance(op, OpOverloadPacket):
        overloads = [getattr(op, name) for name in overload_names(op)]
        overloads = [each for each in overloads if not each._schema.is_mutable] or overloads
        op = overloads[0] if len(overloads) == 1 else None
    return op if isinstance(op, OpOverload) else None


def overload_names(packet: Any) -> list[str]:
    """The overloads of an operator that was named without one."""
    return list(packet.overloads())
