"""What the package exports, and how torch finds it."""

import ast
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import diffusers
import diffusers.models.transformers
import pytest
import torch

import taylorseer_fx
from taylorseer_fx.backend import taylorseer
from tests.zoo import MODELS

ROOT = Path(__file__).parents[1]


def test_all_is_what_is_exported():
    """Every public name of the package is in ``__all__``, and nothing else is."""
    public = {
        name for name, value in vars(taylorseer_fx).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public | {"__version__"} == set(taylorseer_fx.__all__)


def test_all_is_sorted_and_unique():
    assert list(taylorseer_fx.__all__) == sorted(set(taylorseer_fx.__all__))


def test_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert taylorseer_fx.__version__ == version("taylorseer-fx")


@pytest.mark.parametrize("name", ["passes", "runtime"])
def test_folders_are_imported_under_one_name(name):
    """``import passes`` would make a second copy of every module."""
    assert name not in sys.modules
    assert f"taylorseer_fx.{name}" in sys.modules


def test_registered_with_dynamo():
    assert "taylorseer" in torch._dynamo.list_backends()


def test_registered_name_is_our_function():
    (entry,) = entry_points(group="torch_dynamo_backends", name="taylorseer")
    assert entry.load() is taylorseer


@pytest.mark.parametrize("name", taylorseer_fx.__all__)
def test_everything_public_is_documented(name):
    value = getattr(taylorseer_fx, name)
    assert isinstance(value, str) or value.__doc__


def test_import_is_quiet_and_leaves_torch_alone():
    """No output, no warning of ours, and no change of torch's global settings."""
    code = (
        "import torch; before = (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype());"
        "import taylorseer_fx;"
        "assert before == (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "taylorseer" not in done.stderr


class TestStructureOverNames:
    """No table of model classes or module names: a new model must work the day it is published."""

    SOURCES = tuple(path for folder in ("passes", "runtime", "taylorseer_fx") for path in (ROOT / folder).glob("*.py"))

    def test_no_class_of_diffusers_is_mentioned(self):
        classes = {name for name in dir(diffusers) if name[0].isupper()} | set(dir(diffusers.models.transformers))
        words = {word for path in self.SOURCES for word in self.words(path)}
        assert len(words) > 1000
        assert not words & {name for name in classes if name[0].isupper()} - {"Any", "Tensor"}

    def test_no_module_name_is_a_string(self):
        """Names such as ``transformer_blocks`` or ``attn1`` appear in no string but the docstrings."""
        modules = {part for make in MODELS.values() for path, _ in make().model.named_modules() for part in path.split(".")}
        assert "transformer_blocks" in modules
        strings = {string for path in self.SOURCES for string in self.strings(path)}
        assert len(strings) > 200
        assert not {string for string in strings if string in modules - {"", *map(str, range(100))}}

    def words(self, path: Path) -> set[str]:
        """Every identifier, and every word in a string that is not a docstring."""
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        attributes = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        return names | attributes | {word for string in self.strings(path) for word in re.findall(r"\w+", string)}

    def strings(self, path: Path) -> set[str]:
        tree = ast.parse(path.read_text())
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)}
        constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        return {value for value in constants if isinstance(value, str)} - docstrings
