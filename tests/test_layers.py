"""Who may import whom: no arrow up, no circle; for a type nobody imports the passes in a row, the hot path or the compiler."""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import taylorseer_fx
import taylorseer_fx.passes
import taylorseer_fx.runtime

PASSES, RUNTIME, PACKAGE = "taylorseer_fx.passes", "taylorseer_fx.runtime", "taylorseer_fx"

# What lies below a folder, beside the folder itself: all else in it is out of its reach.
BELOW = {
    PASSES: {"taylorseer_fx.compat", "taylorseer_fx.errors", "taylorseer_fx.version"},
    RUNTIME: {"taylorseer_fx.compat", "taylorseer_fx.errors", f"{PASSES}.steps", f"{PASSES}.storage", f"{PASSES}.call_inputs"},
}
# Files that hold names for many rooms, and what these may import of the package.
GROUND = {
    f"{PASSES}.steps": set(),
    f"{PASSES}.storage": set(),
    f"{RUNTIME}.boxed": set(),
    f"{RUNTIME}.ticks": set(),
    "taylorseer_fx.compat": set(),
    "taylorseer_fx.errors": {"taylorseer_fx.compat"},
    "taylorseer_fx.plan_file": {"taylorseer_fx.errors"},
    "taylorseer_fx.config": {
        "taylorseer_fx.compat",
        "taylorseer_fx.errors",
        "taylorseer_fx.plan_file",
        f"{PASSES}.steps",
        f"{PASSES}.storage",
        f"{RUNTIME}.schedule",
        f"{RUNTIME}.placement",
        f"{RUNTIME}.forecasters",
        f"{RUNTIME}.stream_limits",
    },
}


def files() -> dict[str, Path]:
    """Every module of the core, by name."""
    found = {}
    for package in (taylorseer_fx, taylorseer_fx.passes, taylorseer_fx.runtime):
        for path in Path(package.__path__[0]).glob("*.py"):
            found[package.__name__ if path.stem == "__init__" else f"{package.__name__}.{path.stem}"] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the core that a file imports, if only for annotations."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in submodules if node.module in known)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    known = files()
    return {name: set(imported(path, known)) for name, path in known.items()}


def test_files_are_found(arrows):
    assert len(arrows) > 60
    assert f"{PASSES}.pipeline" in arrows["taylorseer_fx.traced"]


@pytest.mark.parametrize("folder", [PASSES, RUNTIME])
def test_no_arrow_up(arrows, folder):
    """The passes know nothing of call time, call time nothing of graphs, and neither of the public package."""
    for name, targets in arrows.items():
        if name.startswith(folder):
            assert {target for target in targets if not target.startswith(folder)} <= BELOW[folder], name


def test_no_circle(arrows):
    graphlib.TopologicalSorter(arrows).prepare()


@pytest.mark.parametrize("name", GROUND)
def test_ground_floor(arrows, name):
    assert arrows[name] <= GROUND[name]


def test_reports_do_not_import_the_compiler(arrows):
    reached, pending = set(), ["taylorseer_fx.explain"]
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += arrows[name]
    assert not {"taylorseer_fx.compile", "taylorseer_fx.cache", f"{RUNTIME}.dispatch"} & reached


def test_contributing_names_files_that_there_are():
    text = Path(__file__).parents[1].joinpath("CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:passes|runtime|taylorseer_fx)/\w+\.py)`", text))
    assert len(named) > 15
    assert [path for path in named if not Path(__file__).parents[1].joinpath(path).is_file()] == []


def test_private_names_of_torch_are_in_one_file():
    """Whatever begins with an underscore, in an import or behind ``torch.``."""
    private = re.compile(r"^ *(from|import) torch[.\w]*(\._\w+[.\w]* import| import _)|\btorch(\.\w+)*\._(?!_)\w+", re.MULTILINE)
    for name, path in files().items():
        text = re.sub(r'"[^"\n]*"', "", re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL))  # a message may name one
        assert name == "taylorseer_fx.compat" or not private.findall(text), name


def test_passes_speak_of_residual_streams():
    """A stream is a sequence of calls (docs/glossary.md), of which graphs know nothing."""
    about_calls = {"storage", "pipeline", "call_inputs", "lower"}
    for path in Path(taylorseer_fx.passes.__path__[0]).glob("*.py"):
        text = re.sub(r"residual\s+streams?", "", path.read_text())
        assert path.stem in about_calls or not re.search(r"\bstreams?\b", text), path.name
