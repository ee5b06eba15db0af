"""The docs hold: their code runs, what they show is what is printed, and no warning, error, public name or example is missing."""

import ast
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import taylorseer_fx
from taylorseer_fx import TaylorSeerError
from taylorseer_fx.cli import main
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.passes.regions import Reason
from taylorseer_fx.passes.residual_ops import REGISTERED
from tests import docs_stand_ins, documented

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
NAMED = [path.relative_to(ROOT).as_posix() for path in PAGES]
# Blocks of a request that a server of the reader's has; and of several processes, from an example that has a test.
SKETCHES = {"docs/scale.md", "docs/parallel.md"}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"(?ms)^```([^\n]*)\n(.*?)^```$", page.read_text())


def of_language(page: Path, language: str) -> list[str]:
    return [content for found, content in blocks(page) if found == language]


class TestBlocks:
    @pytest.mark.parametrize("name", NAMED)
    def test_each_has_a_language_that_is_tested(self, name):
        """``text`` is output, a diagram or a message, each of which has a test; those in braces are directives of Sphinx."""
        found = {language for language, _ in blocks(ROOT / name)}
        assert {language for language in found if not language.startswith("{")} <= {"python", "console", "text"}

    @pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")  # of Qwen-Image
    @pytest.mark.parametrize("name", [name for name in NAMED if of_language(ROOT / name, "python") and name not in SKETCHES])
    def test_python_runs(self, name, monkeypatch, tmp_path):
        """All of a page, one block after the other, on tiny models."""
        monkeypatch.chdir(tmp_path)
        if "taylorseer_fx.ray" in "".join(of_language(ROOT / name, "python")):
            pytest.importorskip("ray", reason="Ray is not installed: pip install 'taylorseer-fx[ray]'")
        namespace = docs_stand_ins.names(monkeypatch)
        registered = dict(REGISTERED)
        try:
            for content in of_language(ROOT / name, "python"):
                exec(compile(content, name, "exec"), namespace)
        finally:
            REGISTERED.clear()
            REGISTERED.update(registered)

    @pytest.mark.parametrize("name", sorted(SKETCHES))
    def test_sketches_are_python(self, name):
        for content in of_language(ROOT / name, "python"):
            ast.parse(content)

    @pytest.mark.parametrize("name", NAMED)
    def test_commands_exist(self, name, capsys):
        for content in of_language(ROOT / name, "console"):
            for line in content.splitlines():
                _check_command(shlex.split(line, comments=True))


def _check_command(words: list[str]) -> None:
    """Not run, but understood by what it calls."""
    program, *arguments = [word for word in words if "=" not in word or word.startswith("-")]
    program = program.removeprefix(".venv/bin/")
    if program == "make":
        targets = set(re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text()))
        assert set(arguments) <= targets
    elif program == "taylorseer-fx":
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--help"])
        assert stopped.value.code == 0
    elif program == "pip":
        extras = re.findall(r"\[([\w,-]+)\]", " ".join(arguments))
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {extra for each in extras for extra in each.split(",")} <= known.keys()
    elif program == "python":
        assert arguments[0] == "-m"
        assert importlib.util.find_spec(arguments[1]) is not None
    else:
        assert program in ("pytest", "pre-commit"), program


class TestOutputs:
    def test_pages_show_what_is_printed(self):
        """But for milliseconds; ``python -m tests.documented`` writes it."""
        for name, found in documented.outputs().items():
            text = (DOCS / name).read_text()
            assert documented.without_times(documented.written(text, found)) == documented.without_times(text)

    @pytest.mark.parametrize("name", NAMED)
    def test_files_named_exist(self, name):
        pattern = r"\b(?:passes|runtime|taylorseer_fx|benchmarks|tests|examples)/[\w/-]+\.(?:py|json|md)\b"
        assert [path for path in re.findall(pattern, (ROOT / name).read_text()) if not (ROOT / path).exists()] == []

    def test_every_example_has_a_place(self):
        shown = re.findall(r"literalinclude\} \.\./examples/(\w+)\.py", (DOCS / "examples.md").read_text())
        assert sorted(shown) == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))

    def test_every_public_name_is_in_the_reference(self):
        shown = re.findall(r"::? (?:taylorseer_fx\.)?(\w+)(?:\(\))?$", (DOCS / "api.md").read_text(), re.MULTILINE)
        assert set(taylorseer_fx.__all__) <= set(shown)
        for name in set(taylorseer_fx.__all__) - {"__version__"}:
            assert getattr(taylorseer_fx, name).__doc__


@cache
def sources() -> tuple[ast.Module, ...]:
    """What can speak to a user: the package without its demo and benchmark."""
    folders = (ROOT / "taylorseer_fx", ROOT / "taylorseer_fx" / "ray", ROOT / "passes", ROOT / "runtime")
    return tuple(ast.parse(path.read_text()) for folder in folders for path in sorted(folder.glob("*.py")))


def calls(*names: str) -> Iterator[ast.Call]:
    """Every call of a function or method of these names."""
    for tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in names:
                    yield node


def begins_with(node: ast.expr) -> str:
    """A constant text, or that before the first value of an f-string."""
    text = node.values[0] if isinstance(node, ast.JoinedStr) else node
    return text.value if isinstance(text, ast.Constant) and isinstance(text.value, str) else ""


TROUBLESHOOTING = (DOCS / "troubleshooting.md").read_text()
SECTIONS = dict(re.findall(r"(?ms)^### `([^`]+)`\n(.*?)(?=^##|\Z)", TROUBLESHOOTING))


class TestTroubleshooting:
    def test_warnings(self):
        """Each topic that ``notify`` is called with; those of f-strings by how they begin."""
        topics = {begins_with(node.args[0]) for node in calls("notify", "_notify") if node.args} - {""}
        listed = {name.removesuffix("…") for name in SECTIONS if not name.endswith("Error")}
        assert listed == topics
        for node in calls("warn"):  # all else that warns says what notify would
            assert begins_with(node.args[0]) == "taylorseer_fx: "

    def test_errors(self):
        kinds, found = [TaylorSeerError], set()
        while kinds:
            kinds = [each for kind in kinds for each in kind.__subclasses__() if each.__module__ == "taylorseer_fx.errors"]
            found |= {kind.__name__ for kind in kinds}
        assert {name for name in SECTIONS if name.endswith("Error")} == found

    def test_arguments(self):
        """Each that a ``ConfigError`` names, and each setting."""
        named = {begins_with(node.args[0]).strip() for node in calls("ConfigError")} - {""}
        table = SECTIONS["ConfigError"]
        listed = set(
            re.findall(r"`([^`]+)`", "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `")))
        )
        assert listed == named | set(BackendConfig.__dataclass_fields__)

    def test_reasons(self):
        for reason in Reason:
            line = next(line for line in TROUBLESHOOTING.splitlines() if line.startswith(f"| `{reason.name}`: "))
            assert reason.value.startswith(line.split("`: ")[1].split(" | ")[0])

    def test_each_has_a_cause_and_a_remedy(self):
        for name, section in SECTIONS.items():
            assert name == "ConfigError" or ("**Cause.**" in section and "**Remedy.**" in section), name

    def test_texts_are_those_of_the_source(self):
        """Quoted word for word; an ellipsis stands for what is filled in."""
        said = [node.value for tree in sources() for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        texts = [text for text in said if isinstance(text, str)]
        for name, section in SECTIONS.items():
            for quoted in re.findall(r"(?ms)^```text\n(.*?)\n```", section):
                for part in map(str.strip, quoted.split("…")):
                    assert any(part in text for text in texts), f"{name}: {part}"
