"""``accelerate``: compile the denoisers of a pipeline where they are, attach, and hand back one thing that undoes it all.

    pipe.transformer.compile(backend=backend)     or pipe.transformer.compile_repeated_blocks(backend=backend)
    backend.attach(pipe)

A thin layer: each denoiser has a ``TaylorSeerBackend`` of its own, to be found in ``backends``, and whatever can be done by hand
with that can be done here.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

from torch import nn

from taylorseer_fx.attach import is_pipeline, neither
from taylorseer_fx.attach_guiders import guiders
from taylorseer_fx.attach_modular import is_modular
from taylorseer_fx.backend import TaylorSeerBackend
from taylorseer_fx.config import BackendConfig, hint_on
from taylorseer_fx.denoisers import denoisers_of
from taylorseer_fx.errors import ConfigError
from taylorseer_fx.handle import Acceleration
from taylorseer_fx.in_place import compile_blocks, compile_whole, compiled_modules, num_repeated_blocks

WAYS = ("auto", "whole", "blocks")
WHOLE_UP_TO = 32  # repeated blocks: two cores compile DiT-XL/2 (28) whole in 45 s, FLUX.1-dev (57) in 98 s, by blocks in a sixth


def accelerate(
    pipe_or_model: Any,
    *,
    compile: str = "auto",  # noqa: A002
    denoisers: Iterable[str] | None = None,
    **settings: Any,
) -> Acceleration:
    """Compile the denoisers of a diffusers pipeline, so that most steps are forecast, and attach to it; or compile one model.

    Everything happens in place: ``pipe`` and its models stay the objects that they are. All models that a sampler calls with the
    time are compiled (both transformers of Wan 2.2), each with a backend of its own; ControlNets, VAE and text encoders are not.

    Args:
        pipe_or_model: a pipeline, also a modular one, or a model.
        compile: "whole", each denoiser as one, whose forecast steps are the fastest; or "blocks", by the repeated blocks that the
            model lists, which compile in a fraction of the time, however many there are. "auto": by blocks where there are more
            than 32, unless their step could not be determined; with a ``plan``, as the plan was made. The handle's text reports
            what was chosen, and why.
        denoisers: names of the components to compile, in place of those found.
        settings: of ``taylorseer_backend``: ``speedup=5.0``, or ``order``, ``interval``, ``plan`` and so on.

    Returns:
        A handle that explains, counts and undoes it. The acceleration lasts without it, too.

    Raises:
        ConfigError: a setting is wrong, nothing denoises, or something is compiled already: by ``accelerate``, perhaps.
    """
    _must_be_known(settings)
    config = BackendConfig.from_options(settings)
    if compile not in WAYS:
        raise ConfigError("compile", " or ".join(map(repr, WAYS)), compile)
    models = _models(pipe_or_model, denoisers)
    _must_be_plain(pipe_or_model, models)
    backends, compiled = {}, {}
    with ExitStack() as undoing:
        for name, model in models.items():
            backend = backends[name] = TaylorSeerBackend(config)
            undoing.callback(backend.reset)
            compiled[name] = _compile(pipe_or_model, model, backend, compile, undoing)
            undoing.callback(backend.detach)
            backend.attach(pipe_or_model)
        return Acceleration(type(pipe_or_model).__name__, config, backends, compiled, undoing.pop_all())


def _must_be_known(settings: Mapping[str, Any]) -> None:
    """Raises:
    ConfigError: a name in ``settings`` is that of no setting.
    """
    known = ["compile", "denoisers", *(setting.name for setting in fields(BackendConfig))]
    for name in settings:
        if name not in known:
            hint = hint_on(name, known, f"compiler_options={{{name!r}: ...}}")
            raise ConfigError("setting", "one of " + ", ".join(known), name, hint)


def _models(target: Any, names: Iterable[str] | None) -> dict[str, nn.Module]:
    if is_pipeline(target) or is_modular(target):
        return denoisers_of(target, names)
    if not isinstance(target, nn.Module):
        raise neither(target)
    if names is not None:
        raise ConfigError("denoisers", "left out for a model", names, "They are components of a pipeline.")
    return {"model": target}


def _must_be_plain(target: Any, models: Mapping[str, nn.Module]) -> None:
    """Raises:
    ConfigError: something in ``models`` is compiled.
    """
    for name, model in models.items():
        if next(compiled_modules(model), None) is not None:
            allowed = "a pipeline or model that is neither accelerated nor compiled yet"
            got = f"{type(target).__name__}, whose {name} is"
            hint = (
                "If it was accelerated, call undo() on the handle first, or attach() to have another pipeline of the same models "
                "join; if it was compiled by hand, leave that to accelerate."
            )
            raise ConfigError("pipe_or_model", allowed, got, hint)


def _compile(target: Any, model: nn.Module, backend: TaylorSeerBackend, way: str, undoing: ExitStack) -> str:
    """Compile ``model`` of ``target`` and return how, in words; ``undoing`` is given what undoes it."""
    way, why = _choose(target, model, backend.config) if way == "auto" else (way, "as asked for")
    overrides = compile_blocks(model, backend) if way == "blocks" else compile_whole(model, backend)
    for each in overrides:
        undoing.callback(each.undo)
    return f"compiled by its {len(overrides)} repeated blocks ({why})" if way == "blocks" else f"compiled whole ({why})"


def _choose(target: Any, model: nn.Module, config: BackendConfig) -> tuple[str, str]:
    """Choose what "auto" stands for, with the reason."""
    num_blocks = num_repeated_blocks(model)
    if not num_blocks:
        return "whole", "it lists no repeated blocks"
    is_planned_by_blocks = config.plan is not None and config.plan.num_regions < num_blocks
    if num_blocks <= WHOLE_UP_TO and not is_planned_by_blocks:
        return "whole", f"{num_blocks} repeated block{'s' * (num_blocks != 1)}"
    if config.granularity == "stack" or config.memory_budget is not None:
        return "whole", "a stack spans all blocks" if config.granularity == "stack" else "memory_budget is that of all blocks"
    if not _can_tell_steps(target, model):
        return "whole", "only the timestep gives the step, and no block takes it"
    if config.plan is not None:
        return ("blocks", "as in the plan") if is_planned_by_blocks else ("whole", "as in the plan")
    return "blocks", f"more than {WHOLE_UP_TO}"


def _can_tell_steps(target: Any, model: nn.Module) -> bool:
    """Are the step known apart from the timestep, and the streams by name? A compiled block is given neither."""
    if isinstance(target, nn.Module):
        return False
    if guiders(target):
        return True
    return hasattr(getattr(target, "scheduler", None), "step") and hasattr(model, "cache_context")
