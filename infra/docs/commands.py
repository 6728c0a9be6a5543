"""Write the command reference, docs/commands.md, from the command itself: `python infra/docs/commands.py > docs/commands.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer

from normscape.cli import app

WIDTH = 110
HEAD = """\
<!-- Written by `make docs-reference` from the command's own help; change the command instead. -->
# Commands

What `normscape COMMAND --help` says. Exit codes, and what else all commands have in common, are told under
[The command in short](index.md#the-command-in-short).
"""


def pages(command: Any, words: tuple[str, ...], parent: Any = None) -> Iterator[tuple[tuple[str, ...], str]]:
    """Words and help of a command and of all below it."""
    context = typer.Context(command, info_name=words[-1], parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)
    yield words, command.get_help(context)
    for name, inner in getattr(command, "commands", {}).items():
        yield from pages(inner, (*words, name), context)


def reference() -> str:
    """The page."""
    parts = [HEAD]
    for words, text in pages(typer.main.get_command(app), ("normscape",)):
        lines = [line.rstrip() for line in text.splitlines()]
        parts.append("\n".join([f"## {' '.join(words)}", "", "```text", *lines, "```", ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(reference())
