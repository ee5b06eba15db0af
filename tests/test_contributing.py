"""The contributor's kit: a list of targets, one script that checks all, templates that ask for what is needed, one version."""

import re
import subprocess
from pathlib import Path

import pytest

import taylorseer_fx

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()


def test_make_help_comes_first_and_lists_every_target():
    targets = re.findall(r"(?m)^([a-z]+):", MAKEFILE)
    assert targets[0] == "help"
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"(?m)^  make ([a-z]+) +\S", listed) == targets


def test_the_workflow_calls_the_script():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r"(?m)^ +- run: (.+)$", workflow) == [".ci/run"]
    script = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"(?m)^make (\w+)$", script) == ["lint", "types", "test", "docs", "wheel"]


def test_templates_ask_for_what_is_needed():
    folder = ROOT / ".github"
    for path in (*folder.glob("ISSUE_TEMPLATE/*.md"), folder / "pull_request_template.md"):
        text = path.read_text()
        assert "taylorseer-fx doctor" in text
        assert "print(backend.explain())" in text


def test_the_changelog_begins_with_this_version():
    assert re.findall(r"(?m)^## (.+)$", (ROOT / "CHANGELOG.md").read_text())[0] == taylorseer_fx.__version__


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone: nothing lists the tree")
def test_the_source_archive_holds_the_tree():
    """Each folder and file at the root, but what is made: it is listed, or part of the package."""
    manifest = (ROOT / "MANIFEST.in").read_text().split()
    by_setuptools = {"taylorseer_fx", "LICENSE", "README.md", "pyproject.toml", "setup.py", "MANIFEST.in"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {Path(line).parts[0] for line in tracked.splitlines()} <= {*manifest, *by_setuptools}
