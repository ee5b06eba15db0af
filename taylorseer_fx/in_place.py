"""Compile a module where it is, whole or by its repeated blocks, so that it can be undone.

The module stays the same object: whoever holds it, saves it or loads adapters into it goes on as before.
"""

import weakref
from collections.abc import Callable, Iterator

from torch import nn

from taylorseer_fx.attach_runs import Override
from taylorseer_fx.backend import TaylorSeerBackend
from taylorseer_fx.compat import COMPILED_CALL, ISOLATED
from taylorseer_fx.errors import ConfigError


def compile_whole(model: nn.Module, backend: TaylorSeerBackend) -> list[Override]:
    """Compile ``model`` as one; returns what undoes it. Compiled and undone again and again, it never comes to Dynamo's limit."""
    model.compile(backend=backend, **ISOLATED)
    return [_compiled(model)]


def compile_blocks(model: nn.Module, backend: TaylorSeerBackend) -> list[Override]:
    """Compile each repeated block of ``model``, as diffusers' ``compile_repeated_blocks`` does; returns what undoes it.

    Raises:
        ConfigError: the model does not list which blocks repeat.
    """
    compiled = _by_blocks(model, backend)
    if not compiled:
        hint = f"{type(model).__name__} lists no repeated blocks, so diffusers cannot compile it by them."
        raise ConfigError("compile", "'auto' or 'whole' for this model", "blocks", hint)
    return compiled


def num_repeated_blocks(model: nn.Module) -> int:
    """The number of blocks that diffusers compiles, 0 if it knows none. It is asked to: nothing is compiled before a call."""
    compiled = _by_blocks(model, "eager")
    for each in compiled:
        each.undo()
    return len(compiled)


def _by_blocks(model: nn.Module, backend: TaylorSeerBackend | str) -> list[Override]:
    by_blocks: Callable[..., None] | None = getattr(model, "compile_repeated_blocks", None)
    if by_blocks is None:
        return []
    try:
        by_blocks(backend=backend)
    except ValueError:  # a model of diffusers that lists none
        return []
    return [_compiled(module) for module in compiled_modules(model)]


def compiled_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The modules in ``model`` that are compiled, itself included, in place or in ``torch.compile``'s wrapper."""
    return (module for module in model.modules() if COMPILED_CALL in vars(module) or hasattr(module, "_orig_mod"))


def _compiled(module: nn.Module) -> Override:
    return Override(weakref.ref(module), COMPILED_CALL, weakref.ref(vars(module)[COMPILED_CALL]), None)
