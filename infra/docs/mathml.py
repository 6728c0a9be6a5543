"""Hook of mkdocs: formulas become MathML, which browsers draw by themselves, so that pages need no network and no script.

Formulas stand as they do on code hosts: in a fence called `math`, or within a line between $` and `$.
"""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

_BLOCK = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"\$`([^`\n]+)`\$")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the formulas of a page before its Markdown is read."""
    markdown = _BLOCK.sub(lambda found: f'<div class="formula">{convert(found[1].strip(), display="block")}</div>', markdown)
    return _INLINE.sub(lambda found: convert(found[1].strip()), markdown)
