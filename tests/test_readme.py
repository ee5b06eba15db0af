"""README and docs show what was recorded, every link leads somewhere, and the README stays one page."""

import json
import re
import runpy
from pathlib import Path

import pytest

from benchmarks.choices import SHOWN
from benchmarks.cuda_codegen.document import page
from benchmarks.readme import PAGES, with_tables

ROOT = Path(__file__).parents[1]
MAX_WORDS = 1000
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (ROOT, ROOT / "docs", ROOT / "docs" / "comparison", ROOT / "examples", ROOT / ".github")
    for path in folder.glob("*.md")
)


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_the_recorded_ones(name):
    text = (ROOT / name).read_text()
    assert with_tables(text, ROOT / "benchmarks" / "results", PAGES[name]) == text


def test_readme_is_one_page():
    """Whatever holds a letter or a digit is a word, in tables and code too."""
    text = (ROOT / "README.md").read_text()
    assert len(re.findall(r"\S*\w\S*", text)) <= MAX_WORDS
    assert 5 <= len(SHOWN) <= 7


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_resolve(name):
    """Files, and headings within a page."""
    path = ROOT / name
    for target in re.findall(r"(?<!`)\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        assert not heading or heading in _anchors(there.read_text()), target


@pytest.mark.parametrize("source", [None, "https://example.org/us/it/"])
def test_links_of_the_page_on_a_package_index(source):
    """Nothing there leads to a file beside it; with the repository's address all that the README links to is linked to."""
    readme = (ROOT / "README.md").read_text()
    text = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["index_page"](readme, source)
    pattern = r"\]\(([^)\s]+)\)"
    assert all(target.startswith(("https://", "#")) for target in re.findall(pattern, text))

    if source is None:
        assert "![" not in text
        assert "Choosing settings has the tables" in text
    else:
        assert len(re.findall(pattern, text)) == len(re.findall(pattern, readme))
        assert "](https://example.org/us/it/raw/main/docs/demo.png)" in text
        assert "[Choosing settings](https://example.org/us/it/blob/main/docs/choosing.md) has the tables" in text


def _anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_page_on_generated_code_says_what_was_recorded():
    """And nothing of it as a measurement."""
    recorded = json.loads((ROOT / "benchmarks" / "results" / "cuda_codegen.json").read_text())
    text = (ROOT / "docs" / "cuda_codegen.md").read_text()
    assert text == page(recorded)
    assert recorded["label"] in text.lower()
