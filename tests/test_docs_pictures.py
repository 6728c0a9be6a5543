"""Pages show something: every picture that a page names is there, small, described, and every page has at least one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md")])
GENERATED = {"configuration.md", "commands.md"}
"""References that are written by a command; the pages of the Python API, in a folder of their own, are, too."""
SCRIPT = ROOT / "infra" / "docs" / "pictures"
LARGEST_BYTES = 150_000
_PICTURE = re.compile(r"!\[(?P<words>[^\]]*)\]\((?P<path>[^)\s]+)\)")


def pictures(text: str) -> list[tuple[str, str]]:
    """(words, path) of every picture outside of fenced blocks."""
    outside = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [(found["words"], found["path"]) for found in _PICTURE.finditer(outside)]


def drawn_names() -> set[str]:
    """Names of the pictures that the script draws, read from its source."""
    tree = ast.parse((SCRIPT / "__main__.py").read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.AnnAssign)]
    tables = [node.value for node in assigned if getattr(node.target, "id", "") == "PICTURES"]
    assert len(tables) == 1
    assert isinstance(tables[0], ast.Dict)
    return {ast.literal_eval(key) for key in tables[0].keys if key is not None}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_of_a_page(page: Path) -> None:
    """Each exists, is a picture, and is told in words for those who do not see it; a written page has one."""
    found = pictures(page.read_text(encoding="utf-8"))
    assert found or page.name in GENERATED, f"{page.name} shows nothing"
    for words, path in found:
        there = page.parent / path
        assert there.is_file(), f"{page.name}: {path} is not there"
        with Image.open(there) as picture:
            picture.verify()
        assert len(words.split()) >= 5, f"{page.name}: {path} is not described: {words!r}"


def test_a_page_without_a_picture_would_be_found() -> None:
    assert pictures("text ![seen by nobody](images/a.png) and [a link](b.md)\n```\n![not this](c.png)\n```\n") == [
        ("seen by nobody", "images/a.png")
    ]


def test_pictures_of_the_script_are_committed_shown_and_small() -> None:
    """One that no page shows, or that was never drawn, is a mistake; so is one that takes long to load."""
    names = drawn_names()
    assert len(names) >= 12
    shown = {Path(path).stem for page in PAGES for _, path in pictures(page.read_text(encoding="utf-8"))}
    assert names <= shown, f"no page shows {sorted(names - shown)}"
    for name in names:
        path = DOCS / "images" / f"{name}.png"
        assert path.stat().st_size <= LARGEST_BYTES, f"{path.name}: {path.stat().st_size} bytes"
        with Image.open(path) as picture:
            assert 600 <= picture.width <= 1400, path.name
            assert min(picture.convert("RGB").getpixel((0, 0))) >= 240, f"{path.name}: the corner is not light"
