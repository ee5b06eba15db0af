"""The identity of a function across processes: its code, and whatever the code reads that can change what it does."""

import hashlib
import json
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from taylorseer_fx.compat import OperatorNamespaces, OpOverload, OpOverloadPacket

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), torch.dtype, torch.device, torch.layout)
_Text = Any  # nested lists of text, for ``json``


class _UnknownError(Exception):
    """Something is read whose value has no text that means the same in another process."""


def fingerprint(function: Callable[..., Any]) -> str | None:
    """A digest of ``function`` and of the functions and constants that it reads; None where it reads anything else."""
    try:
        text = json.dumps(_describe(function, set()))
    except (_UnknownError, ValueError):  # a cell of a closure may be empty
        return None
    return hashlib.sha256(text.encode()).hexdigest()


def _describe(value: Any, seen: set[int]) -> _Text:
    if isinstance(value, _PLAIN):
        return [type(value).__name__, repr(value)]
    if _is_installed(value):
        return ["torch", getattr(value, "__module__", ""), getattr(value, "__qualname__", None) or str(value)]
    if id(value) in seen:
        return ["again", getattr(value, "__qualname__", "")]
    seen.add(id(value))
    if isinstance(value, types.FunctionType):
        return ["function", *_describe_function(value, seen)]
    if isinstance(value, types.CodeType):
        return ["code", *_describe_code(value, seen)]
    if isinstance(value, partial):
        return ["partial", *(_describe(part, seen) for part in (value.func, value.args, value.keywords))]
    return _describe_container(value, seen)


def _describe_container(value: Any, seen: set[int]) -> _Text:
    if isinstance(value, (tuple, list)):
        return ["sequence", *(_describe(item, seen) for item in value)]
    if isinstance(value, (set, frozenset)):
        return ["set", *sorted(json.dumps(_describe(item, seen)) for item in value)]
    if isinstance(value, dict):
        return ["dict", *([_describe(key, seen), _describe(item, seen)] for key, item in value.items())]
    raise _UnknownError


def _is_installed(value: Any) -> bool:
    """Does it come with Python or torch, whose versions are in torch's own key?"""
    if isinstance(value, (types.BuiltinFunctionType, OpOverload, OpOverloadPacket, *OperatorNamespaces)):
        return True
    name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    if isinstance(value, (types.ModuleType, types.FunctionType, type)):
        return str(name).split(".")[0] in ("torch", "math", "builtins", "operator", "functools")
    return False


def _describe_function(function: types.FunctionType, seen: set[int]) -> Iterator[_Text]:
    yield _describe(function.__code__, seen)
    yield _describe(function.__defaults__, seen)
    yield _describe(function.__kwdefaults__, seen)
    yield [_describe(cell.cell_contents, seen) for cell in function.__closure__ or ()]
    read = sorted(set(_names(function.__code__)) & function.__globals__.keys())
    yield [[name, _describe(function.__globals__[name], seen)] for name in read]


def _describe_code(code: types.CodeType, seen: set[int]) -> Iterator[_Text]:
    yield [code.co_code.hex(), *code.co_names, *code.co_varnames]
    yield [_describe(constant, seen) for constant in code.co_consts]


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that the code and the functions within read; attributes are among them."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
