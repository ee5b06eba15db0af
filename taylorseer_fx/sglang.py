"""A plug-in of SGLang's diffusion engine: it compiles the transformers of its pipelines with this backend.

SGLang finds ``register`` by the entry point ``sglang.multimodal_gen.plugins`` in each of its processes. Nothing is changed unless
the variable ``TAYLORSEER_FX_SGLANG`` holds settings of ``taylorseer_backend``, as JSON:

    TAYLORSEER_FX_SGLANG='{"order": 1, "interval": 5}' sglang serve --model-path ... --enable-torch-compile

A variable, since SGLang starts its workers itself. Not run in a server yet: SGLang asks for a newer torch than this package
supports. docs/serving.md has what it was tested with.
"""

import json
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from taylorseer_fx.config import BackendConfig
from taylorseer_fx.errors import ConfigError

VARIABLE = "TAYLORSEER_FX_SGLANG"
TARGET = "sglang.multimodal_gen.runtime.utils.torch_compile.build_torch_compile_kwargs"


def register() -> None:
    """Hook into the arguments that SGLang calls ``module.compile`` with.

    Raises:
        ConfigError: the variable holds no JSON object, or settings that are none of the backend's.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return
    settings = _settings(text)
    from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry, HookType

    HookRegistry.register(TARGET, partial(_with_backend, settings), HookType.AFTER)


def _with_backend(settings: Mapping[str, Any], compile_arguments: Mapping[str, Any], *_: object, **__: object) -> dict[str, Any]:
    """``compile_arguments`` with this backend; without a mode, which is one of Inductor's."""
    kept = {name: value for name, value in compile_arguments.items() if name not in ("mode", "options")}
    return kept | {"backend": "taylorseer", "options": dict(settings)}


def _settings(text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ConfigError(
            VARIABLE, "a JSON object with settings of taylorseer_backend", text, 'Such as {"order": 1, "interval": 5}.'
        )
    BackendConfig.from_options(settings)
    return settings
