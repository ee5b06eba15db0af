"""The page on a package index: the README, whose links to files of the repository lead nowhere from there.

They become absolute once pyproject.toml names the repository (``[project.urls]``, ``Source``). Until it does, pictures are
left out, and of other links the text stays.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")


def index_page(readme: str, source: str | None) -> str:
    """The text of ``readme`` with links that lead somewhere; ``source``: the address of the repository, None if there is none."""

    def absolute(link: re.Match[str]) -> str:
        is_picture, text, target = link.groups()
        if source is None:
            return "" if is_picture else text
        return f"{is_picture}[{text}]({source.rstrip('/')}/{'raw' if is_picture else 'blob'}/main/{target})"

    return re.sub(r"\n{3,}", "\n\n", LINK.sub(absolute, readme))


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = index_page((ROOT / "README.md").read_text(), project.get("urls", {}).get("Source"))
    setup(long_description=page, long_description_content_type="text/markdown")
