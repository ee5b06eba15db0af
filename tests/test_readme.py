"""The README says what was recorded, and nothing in the tree speaks of a machine."""

from pathlib import Path

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
