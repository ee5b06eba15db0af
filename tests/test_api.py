"""What the package exports, and how torch finds it."""

import subprocess
import sys
from importlib.metadata import entry_points
from types import ModuleType

import pytest
import torch

import taylorseer_fx
from taylorseer_fx.entry import taylorseer


def test_all_is_what_is_exported():
    """Every public name of the package is in ``__all__``, and nothing else is."""
    names = [name for name in dir(taylorseer_fx) if not name.startswith("_")]
    public = {name for name in names if not isinstance(getattr(taylorseer_fx, name), ModuleType)}
    assert public | {"__version__"} == set(taylorseer_fx.__all__)


def test_names_that_are_not_there():
    with pytest.raises(AttributeError, match="module 'taylorseer_fx' has no attribute 'accelarate'"):
        taylorseer_fx.accelarate  # noqa: B018


def test_torch_is_imported_when_it_is_needed():
    """Not for the first line of a command, nor for its help; and ``from`` works as if all were there."""
    code = """
import sys, taylorseer_fx, taylorseer_fx.cli
assert "accelerate" in dir(taylorseer_fx) and "torch" not in sys.modules, "imported too early"
from taylorseer_fx import accelerate
assert accelerate is taylorseer_fx.accelerate is sys.modules["taylorseer_fx.acceleration"].accelerate
"""
    subprocess.run([sys.executable, "-c", code], check=True)


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


def test_harness_is_imported_under_one_name():
    """It lies in ``benchmarks/harness``, and is a part of the package."""
    import taylorseer_fx.bench.workloads

    assert "benchmarks.harness" not in sys.modules
    assert taylorseer_fx.bench.workloads.__name__ == "taylorseer_fx.bench.workloads"


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
        "from taylorseer_fx import *;"
        "assert before == (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "taylorseer" not in done.stderr
