"""Numbers for symbolic sizes, to report with; never to decide by."""

from typing import Any

from torch import SymInt


def hint(size: int | SymInt) -> int:
    """``size`` for the inputs that the graph was traced with; what only the data tell (an unbacked symbol) counts as one."""
    if not isinstance(size, SymInt):
        return int(size)
    expression, shape_env = size.node.expr, size.node.shape_env
    return int(expression.xreplace({symbol: _hint_of(symbol, shape_env) for symbol in expression.free_symbols}))


def _hint_of(symbol: Any, shape_env: Any) -> int:
    if hasattr(shape_env, "optimization_hint"):
        return int(shape_env.optimization_hint(symbol, fallback=1))
    value = shape_env.size_hint(symbol, allow_none=True)  # torch before 2.13
    return 1 if value is None else int(value)
