"""The versions that a report or a plan was made with."""

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version

import torch


def versions() -> dict[str, str]:
    """The versions of this package, of what it depends on, and of Python, by name."""
    found = {"taylorseer_fx": _version("taylorseer-fx")}
    for requirement in _requirements():
        found[requirement] = _version(requirement)
    return {**found, "Python": platform.python_version()}


def _requirements() -> list[str]:
    """The packages that this one cannot do without."""
    try:
        texts = [text for text in requires("taylorseer-fx") or [] if "extra ==" not in text]
    except PackageNotFoundError:  # used from its sources
        texts = ["torch"]
    return [match.group() for text in texts if (match := re.match(r"[\w-]+", text))]


def _version(name: str) -> str:
    if name == "torch":
        return str(torch.__version__)  # with the build, such as +cpu, which not every wheel's metadata has
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
