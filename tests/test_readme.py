"""The README says what was recorded, and nothing in the tree speaks of a machine."""

import json
from pathlib import Path

from benchmarks.cuda_codegen.document import page
from benchmarks.readme import with_tables

ROOT = Path(__file__).parents[1]


def test_readme_tables_are_the_recorded_ones():
    text = (ROOT / "README.md").read_text()
    assert with_tables(text, ROOT / "benchmarks" / "results") == text


def test_readme_links_resolve():
    import re

    text = (ROOT / "README.md").read_text()
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_page_on_generated_code_says_what_was_recorded():
    """And nothing of it as a measurement."""
    recorded = json.loads((ROOT / "benchmarks" / "results" / "cuda_codegen.json").read_text())
    text = (ROOT / "docs" / "cuda_codegen.md").read_text()
    assert text == page(recorded)
    assert recorded["label"] in text.lower()
