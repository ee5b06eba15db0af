"""What a modular pipeline of diffusers tells: its denoising loops, and its guiders, which name the calls of a step.

    with loop.progress_bar():                      a run
        batches = guider.prepare_inputs(...)       the names: pred_cond, pred_uncond, ...
        for batch in batches:
            guider.prepare_models(model)           the stream of the next call
            model(...)
            guider.cleanup_models(model)

A guider that is put into the pipeline later is not known; its calls are told apart by their conditioning, as those of any loop.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from taylorseer_fx.runtime.scope import Scope, ScopeVariable


def loops_of(pipe: Any) -> list[Any]:
    """What makes the progress bars of a pipeline: the pipeline itself, or the loops among the blocks of a modular one."""
    return [pipe] if callable(getattr(pipe, "progress_bar", None)) else list(_loops_in(vars(pipe).get("_blocks")))


def _loops_in(block: Any) -> Iterator[Any]:
    if callable(getattr(block, "progress_bar", None)):
        yield block
        return
    for inner in dict(getattr(block, "sub_blocks", None) or {}).values():
        yield from _loops_in(inner)


def is_guider(component: Any) -> bool:
    """Does ``component`` make the batches of a step, and is told before and after each?"""
    return all(callable(getattr(component, name, None)) for name in ("prepare_models", "cleanup_models", *_LISTINGS))


_LISTINGS = ("prepare_inputs", "prepare_inputs_from_block_state")


@dataclass(eq=False)
class GuiderStreams:
    """The streams that one guider names, within the run at hand."""

    scopes: ScopeVariable
    key: str
    _names: list[str] = field(default_factory=list)
    _leave: Callable[[], None] | None = None

    @classmethod
    def of(cls, guider: Any, scopes: ScopeVariable) -> "GuiderStreams":
        return cls(scopes, getattr(guider, "_identifier_key", ""))

    def replacements(self, guider: Any) -> dict[str, Callable[..., Any]]:
        """The methods of ``guider`` by name, each with what it tells added."""
        listings = {name: self._listing(getattr(guider, name)) for name in _LISTINGS}
        entering, leaving = self._entering(guider.prepare_models), self._leaving(guider.cleanup_models)
        return {**listings, "prepare_models": entering, "cleanup_models": leaving}

    def leave(self) -> None:
        """End the stream that was begun last, if it has not ended."""
        if self._leave is not None:
            self._leave()
            self._leave = None

    def _listing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
            batches = original(*args, **kwargs)
            self._names = [str(getattr(batch, self.key, i)) for i, batch in enumerate(batches)]
            return batches

        return prepare_inputs

    def _entering(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def prepare_models(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self.leave()
            if self._names:
                self._leave = self.scopes.begin(Scope(self._names.pop(0)))
            return result

        return prepare_models

    def _leaving(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def cleanup_models(*args: Any, **kwargs: Any) -> Any:
            self.leave()
            return original(*args, **kwargs)

        return cleanup_models
