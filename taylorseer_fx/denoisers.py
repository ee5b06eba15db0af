"""Identify the denoisers of a pipeline: the models that its sampler calls at every step, by how they are called.

    forward(hidden_states, timestep, ...)                        a denoiser: takes the time
    forward(..., timestep, controlnet_cond, conditioning_scale)  a helper: its outputs are scaled, then added within a denoiser
    forward(input_ids, ...), forward(sample, ...)                a text encoder, a VAE: no time

Nothing depends on the name of a component or of its class. A helper without anybody to help is a denoiser that has its control
built in.
"""

import inspect
import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from taylorseer_fx.attach import models_of, unwrapped
from taylorseer_fx.errors import ConfigError

_TIME = re.compile(r"(\w+_)?(t|time|timesteps?|sigmas?)(_ratio)?")
_SCALE_OF_A_HELPER = "conditioning_scale"


def denoisers_of(pipe: Any, names: Iterable[str] | None = None) -> dict[str, nn.Module]:
    """The denoisers of ``pipe`` by the names of their components, each once; or the components ``names``.

    Raises:
        ConfigError: there is none, or ``names`` are not all models of the pipeline.
    """
    models = models_of(pipe)
    if names is not None:
        return {name: models[name] for name in _checked(names, models)}
    timed = {name: model for name, model in models.items() if _takes_time(model)}
    chosen = {name: model for name, model in timed.items() if not _is_helper(model)} or timed
    if not chosen:
        hint = f"Name the component to accelerate, denoisers=[...]: {_listed(models)}."
        raise ConfigError("pipe_or_model", "a pipeline with a model that is called with the time", type(pipe).__name__, hint)
    return _each_once(chosen)


def _checked(names: Iterable[str], models: dict[str, nn.Module]) -> list[str]:
    allowed = f"a list of components that are models: {_listed(models)}"
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConfigError("denoisers", allowed, names)
    chosen = list(dict.fromkeys(names))
    if not chosen or any(name not in models for name in chosen):
        raise ConfigError("denoisers", allowed, chosen)
    return chosen


def _takes_time(model: nn.Module) -> bool:
    return any(_TIME.fullmatch(name) for name in _arguments(model))


def _is_helper(model: nn.Module) -> bool:
    return _SCALE_OF_A_HELPER in _arguments(model)


def _arguments(model: nn.Module) -> list[str]:
    return list(inspect.signature(unwrapped(model).forward).parameters)


def _each_once(models: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """A model that two components share is listed by the first of them."""
    names = {id(model): name for name, model in reversed(models.items())}
    return {name: model for name, model in models.items() if names[id(model)] == name}


def _listed(models: dict[str, nn.Module]) -> str:
    return ", ".join(map(repr, models)) or "it has none"
