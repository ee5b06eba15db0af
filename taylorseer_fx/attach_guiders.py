"""Read steps and streams from the guiders of a pipeline in a run.

    guider.set_state(step=i, ...)        the step, known on the host
    guider.prepare_inputs...(...)        the batches of the step, each with its identifier: "pred_cond", "pred_uncond", ...
    guider.prepare_models(model)         the model is called with the next of these batches ...
    guider.cleanup_models(model)         ... and was

Each batch is a stream, by the name that its guider gives it; so a stream may begin late, stop, or be left out at some steps.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from taylorseer_fx.attach_runs import End, Method, nothing
from taylorseer_fx.runtime.scope import Scope
from taylorseer_fx.runtime.state import Runtime

_IDENTIFIER_KEY = "__guidance_identifier__"


def is_guider(component: Any) -> bool:
    """Does ``component`` make batches of its own for the calls of a step?"""
    names = ("set_state", "prepare_inputs", "prepare_models", "cleanup_models")
    return all(callable(getattr(component, name, None)) for name in names)


def guiders(pipe: Any) -> list[Any]:
    """Those among the components of ``pipe``, each once."""
    return list({id(component): component for component in pipe.components.values() if is_guider(component)}.values())


@dataclass(eq=False)
class GuidedCalls:
    """The reports of guiders in one run.

    ``names``: of the batches that were prepared since the model was called last, each once, in their order. Two guiders may each
    prepare theirs for calls that serve both (video and audio).
    """

    runtime: Runtime
    names: list[str] = field(default_factory=list)
    num_calls: int = 0
    step: int | None = None
    leave: End = nothing

    def methods(self, guider: Any) -> dict[str, Method]:
        """The functions that stand for the methods of ``guider``."""
        methods = {
            "set_state": self._telling_step(guider.set_state),
            "prepare_models": self._entering(guider.prepare_models),
            "cleanup_models": self._leaving(guider.cleanup_models),
        }
        key = getattr(guider, "_identifier_key", _IDENTIFIER_KEY)
        for name in ("prepare_inputs", "prepare_inputs_from_block_state"):
            if callable(getattr(guider, name, None)):
                methods[name] = self._preparing(getattr(guider, name), key)
        return methods

    def _telling_step(self, original: Method) -> Method:
        def set_state(*args: Any, **kwargs: Any) -> Any:
            step = kwargs.get("step", args[0] if args else None)
            self.step = step if isinstance(step, int) else None
            return original(*args, **kwargs)

        return set_state

    def _preparing(self, original: Method, key: str) -> Method:
        def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
            batches = original(*args, **kwargs)
            self._note([getattr(batch, key, None) for batch in batches])
            return batches

        return prepare_inputs

    def _note(self, identifiers: Sequence[Any]) -> None:
        if self.num_calls > 0:
            self.names, self.num_calls = [], 0
        names = [str(name) if name is not None else f"batch {i}" for i, name in enumerate(identifiers)]
        self.names += [name for name in names if name not in self.names]

    def _entering(self, original: Method) -> Method:
        def prepare_models(denoiser: Any, *args: Any, **kwargs: Any) -> Any:
            self.leave()
            before = _forwards(denoiser)
            result = original(denoiser, *args, **kwargs)
            self._enter(is_changed=_forwards(denoiser) != before)
            return result

        return prepare_models

    def _enter(self, is_changed: bool) -> None:
        entered, name = ExitStack(), None
        if self.num_calls < len(self.names):
            name = self.names[self.num_calls]
            entered.callback(self.runtime.scopes.begin(Scope(name, self.step)))
        if is_changed:
            self.runtime.notify("a guider changes the model", _CHANGED.format(name=name))
            entered.enter_context(torch.compiler.set_stance("force_eager"))
        self.leave = entered.close
        self.num_calls += 1

    def _leaving(self, original: Method) -> Method:
        def cleanup_models(*args: Any, **kwargs: Any) -> Any:
            self.leave()
            return original(*args, **kwargs)

        return cleanup_models


def _forwards(model: Any) -> list[Any]:
    """The functions set on the modules of ``model`` over the ``forward`` of their classes."""
    return [vars(module).get("forward") for module in model.modules()] if isinstance(model, nn.Module) else []


_CHANGED = (
    "for its batch {name!r} the guider changes modules of the model (leaves out a layer, or its attention) and puts them back. "
    "torch.compile would compile the model anew each time, until it gives up; so these calls run as they are, in full, neither "
    "compiled nor forecast. The guider's other batches are."
)
