"""The plug-in for SGLang, against stand-ins of the two names that it uses; and with SGLang itself, where it can be imported."""

import os
import subprocess
import sys
import tomllib
from enum import Enum
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from taylorseer_fx import ConfigError, sglang
from tests.zoo import tiny, tiny_inputs

ROOT = Path(__file__).parents[1]
PLUGINS = "sglang.multimodal_gen.runtime.platforms.plugins"


class HookType(Enum):
    AFTER = "after"


class HookRegistry:
    """As SGLang's: what is registered AFTER a function is given its result and its arguments, and returns another result."""

    hooks: dict[str, Any]

    @classmethod
    def register(cls, target: str, hook: Any, hook_type: HookType) -> None:
        assert hook_type is HookType.AFTER
        cls.hooks[target] = hook

    @classmethod
    def call(cls, target: str, result: Any, **arguments: Any) -> Any:
        changed = cls.hooks[target](result, **arguments)
        return result if changed is None else changed


@pytest.fixture(autouse=True)
def registry(monkeypatch) -> type[HookRegistry]:
    parts = PLUGINS.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    sys.modules[PLUGINS].HookRegistry, sys.modules[PLUGINS].HookType = HookRegistry, HookType  # type: ignore[attr-defined]
    HookRegistry.hooks = {}
    return HookRegistry


def test_nothing_happens_unasked(registry, monkeypatch):
    monkeypatch.delenv(sglang.VARIABLE, raising=False)
    sglang.register()
    assert registry.hooks == {}


def test_a_module_compiled_as_sglang_does(registry, monkeypatch):
    """In place, with what the hook makes of SGLang's arguments; most steps are then forecast."""
    monkeypatch.setenv(sglang.VARIABLE, '{"order": 1, "interval": 3, "warmup": 2, "compiler": "eager"}')
    sglang.register()
    given = {"fullgraph": False, "dynamic": None, "mode": "max-autotune-no-cudagraphs"}
    arguments = registry.call(sglang.TARGET, given, mode="max-autotune-no-cudagraphs", module=None)
    assert "mode" not in arguments
    model = tiny()
    model.compile(**arguments)
    with torch.no_grad():
        outputs = [model(**tiny_inputs(step)) for step in range(8)]
        in_full = [tiny()(**tiny_inputs(step)) for step in range(8)]
    equal = [bool(torch.allclose(ours, full, atol=1e-6)) for ours, full in zip(outputs, in_full, strict=True)]
    assert equal == [True, True, False, False, True, False, False, True]


WITH_SGLANG = """
import torch
from sglang.multimodal_gen.runtime.platforms import plugins
from sglang.multimodal_gen.runtime.utils.torch_compile import resolve_torch_compile_kwargs
from taylorseer_fx.sglang import register
from tests.zoo import tiny, tiny_inputs

register()
plugins.apply_plugin_hooks()
arguments, _ = resolve_torch_compile_kwargs(default="max-autotune-no-cudagraphs")
model = tiny()
model.compile(**arguments)
with torch.no_grad():
    print(sum(not torch.allclose(model(**tiny_inputs(i)), tiny()(**tiny_inputs(i)), atol=1e-6) for i in range(8)))
"""


@pytest.mark.skipif(find_spec("sglang") is None, reason="sglang cannot be imported: it asks for another torch")
def test_with_sglang_itself():
    """In a process of its own, since hooks stay where they are."""
    settings = {sglang.VARIABLE: '{"order": 1, "interval": 3, "warmup": 2, "compiler": "eager"}'}
    cpu = {"SGLANG_DIFFUSION_TARGET_DEVICE": "cpu", "SGLANG_PLUGINS": "none but the one that is registered here"}
    environment = os.environ | settings | cpu
    command = [sys.executable, "-W", "ignore", "-c", WITH_SGLANG]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("order=1", "TAYLORSEER_FX_SGLANG must be a JSON object with settings of taylorseer_backend, got 'order=1'"),
        ("[1]", "TAYLORSEER_FX_SGLANG must be a JSON object"),
        ('{"intervall": 5}', "Did you mean 'interval'"),
    ],
)
def test_wrong_settings(text, message, monkeypatch):
    monkeypatch.setenv(sglang.VARIABLE, text)
    with pytest.raises(ConfigError, match=message):
        sglang.register()


def test_the_entry_point():
    """What SGLang finds by its group is a function of no arguments."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    (value,) = points["sglang.multimodal_gen.plugins"].values()
    assert EntryPoint("taylorseer_fx", value, "sglang.multimodal_gen.plugins").load() is sglang.register
