"""The numbers that stand for symbolic sizes in reports; never to decide by."""

from typing import Any

from torch import SymInt


def hint(size: int | SymInt) -> int:
    """The value of ``size`` for the inputs of the trace; one that only the data determine (an unbacked symbol) counts as one."""
    if not isinstance(size, SymInt):
        return int(size)
    expression, shape_env = size.node.expr, size.node.shape_env
    return int(expression.xreplace({symbol: _hint_of(symbol, shape_env) for symbol in expression.free_symbols}))


def _hint_of(symbol: Any, shape_env: Any) -> int:
    if hasattr(shape_env, "optimization_hint"):
        return int(shape_env.optimization_hint(symbol, fallback=1))
    value = shape_env.size_hint(symbol, allow_none=True)  # torch before 2.13
    return 1 if value is None else int(value)
