"""``register_residual_op``: declare what an operator of one's own adds to the residual stream."""

from collections.abc import Callable
from typing import Any

from taylorseer_fx.compat import FunctionalTensorMode, OpOverload, OpOverloadPacket, library_registry
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.fingerprint import fingerprint
from taylorseer_fx.passes.fused_layers import fused_layers
from taylorseer_fx.passes.residual_ops import OF_TORCH, REGISTERED, as_overload, overload_names


def register_residual_op(op: Any, decomposition: Callable[..., Any]) -> None:
    """Declare that ``op`` adds a residual, ``x + gate * f`` in one kernel, so that what it adds is found and forecast.

    The backend cannot see into an operator that torch does not define. Where one adds the output of attention or an MLP to the
    stream, that output is executed in every step, unless the operator is registered: then it is compiled as ``decomposition``,
    in executed steps, too. Register before the compiled model is first called; the registration holds for the process, for every
    backend in it. The operator itself, and models that do not use this backend, are not changed.

    Args:
        op: the operator: ``torch.ops.engine.residual_gate_add``, an overload of it, or what ``torch.library.custom_op`` returns.
            It must return its result, not write it to an argument.
        decomposition: a function that takes what ``op`` takes and returns what it returns, of the same shapes and dtypes, written
            with ordinary torch operators. It is traced without values, so it must not read any, and makes no tensors of its own
            but of those it gets (``torch.zeros_like(x)``, not ``torch.tensor(1.0)``).

    Raises:
        ConfigError: an argument is wrong, or ``op`` is registered with another decomposition already. What ``decomposition``
            returns is checked when a model is compiled.

    Example::

        register_residual_op(torch.ops.engine.residual_gate_add, lambda x, f, gate: x + f * gate)
    """
    overload = _checked_operator(op)
    if not callable(decomposition):
        raise ConfigError("decomposition", "a function of tensors", decomposition)
    if overload in OF_TORCH or overload in fused_layers():
        raise ConfigError("op", "an operator that is not known already", str(overload), "The backend takes it apart by itself.")
    known = REGISTERED.get(overload)
    if known is not None and not _same(known, decomposition):
        raise ConfigError("op", "an operator that is not registered with another decomposition", str(overload))
    REGISTERED[overload] = decomposition


def _checked_operator(op: Any) -> OpOverload:
    overload = as_overload(op)
    if overload is None:
        allowed = "an operator, such as torch.ops.engine.residual_gate_add or what torch.library.custom_op returns"
        names = ", ".join(overload_names(op)) if isinstance(op, OpOverloadPacket) else ""
        raise ConfigError("op", allowed, op, f"It has several overloads ({names}): name one, and register each." if names else "")
    if overload._schema.is_mutable:
        hint = "Call one that returns its result in the model; register that."
        raise ConfigError("op", "an operator that writes to none of its arguments", str(overload), hint)
    if library_registry.find(overload._schema.name).torch_dispatch_rules.find(FunctionalTensorMode) is not None:
        hint = "torch.compile looks into such an operator; make it with torch.library.custom_op."
        raise ConfigError("op", "an operator not made with torch.library.triton_op", str(overload), hint)
    return overload


def _same(known: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Is it the function itself, or an equal one? A notebook's cell may be run twice."""
    return known is other or (fingerprint(known) is not None and fingerprint(known) == fingerprint(other))
