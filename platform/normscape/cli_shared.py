"""What the commands have in common: options, tables, JSON for machines, and help with examples in it."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from normscape.errors import UserError

RUNS = Path("runs")
PIPED_WIDTH = 160
"""Columns of a table where there is no terminal, so that nothing is cut."""
EXPERIMENTS, DATA, MODELS, OTHERS = HEADINGS = ("Experiments", "Data", "Trained systems", "This program")
"""Headings of `normscape --help`, in order."""

_log = logging.getLogger("normscape")


def complete_runs(incomplete: str) -> list[str]:
    """Names of the runs in the usual folder, for the shell's completion."""
    return sorted(path.parent.name for path in RUNS.glob("*/config.yaml") if path.parent.name.startswith(incomplete))


def _one_of_two(context: typer.Context, value: bool, other: str) -> bool:
    if value and context.params.get(other):
        raise typer.BadParameter("--quiet and --verbose exclude each other")
    return value


def _quiet(context: typer.Context, value: bool) -> bool:
    return _one_of_two(context, value, "verbose")


def _verbose(context: typer.Context, value: bool) -> bool:
    if _one_of_two(context, value, "quiet"):
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        _log.setLevel(logging.DEBUG)
    return value


def forget_verbose() -> None:
    """As if --verbose had not been given: for a process that runs several commands."""
    _log.setLevel(logging.NOTSET)


def is_verbose() -> bool:
    """Whether --verbose was given: messages then come with what led to them."""
    return _log.level == logging.DEBUG


SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change a value, for example gan.steps=2000; may be repeated."),
]
RunsOption = Annotated[
    Path,
    typer.Option("--runs-dir", envvar="NORMSCAPE_RUNS", metavar="FOLDER", help="Where run folders, and the MLflow file, are."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", callback=_quiet, help="No progress; only what came out.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", callback=_verbose, help="More progress, and what led to an error.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="The Ray cluster: host:port, `auto`, or `local` for a Ray of our own. Without it RAY_ADDRESS, or a Ray of our own.",
    ),
]
TrackOption = Annotated[bool, typer.Option("--no-track", help="Do not record it in MLflow.")]


def find_run(text: str | Path, runs_dir: Path) -> Path:
    """The folder of a run, named by its path or by its name in the runs folder.

    Raises:
        UserError: there is none; the message lists those that there are.
    """
    folder = next((path for path in (Path(text), runs_dir / text) if (path / "config.yaml").is_file()), None)
    if folder is None:
        raise UserError(f"{text}: no run folder; {known_runs(runs_dir)}")
    return folder.resolve()


def known_runs(runs_dir: Path) -> str:
    """`the runs in runs are a, b`, or how to get one."""
    known = sorted(path.parent.name for path in runs_dir.glob("*/config.yaml"))
    if known:
        return f"the runs in {runs_dir} are {', '.join(known)}"
    return f"there are no runs in {runs_dir}: `normscape run CONFIG` makes one, --runs-dir names another folder"


# ---- what is printed -----------------------------------------------------------------------------------------------------


def print_table(shown: Table | Text) -> None:
    """A table, without colours and as wide as it needs where there is no terminal."""
    console = Console()
    (console if console.is_terminal else Console(width=PIPED_WIDTH)).print(shown)


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table of plain texts; long cells are folded, never cut."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def print_json(value: Any) -> None:
    """JSON on stdout, and nothing else; what is no number is null, paths are texts."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- help ----------------------------------------------------------------------------------------------------------------


def examples(*lines: str) -> str:
    """The end of a command's help: examples, each line as it stands."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


class Sections(TyperGroup):
    """Commands whose help lists its commands under headings, those that they were registered with as `rich_help_panel`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the headings with their commands; commands without one come last."""
        commands = [(name, self.commands[name]) for name in self.list_commands(ctx) if not self.commands[name].hidden]
        limit = formatter.width - 6 - max(len(name) for name, _ in commands)
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in commands:
            heading = getattr(command, "rich_help_panel", None) or "Commands"
            sections.setdefault(heading, []).append((name, command.get_short_help_str(limit)))
        for heading in (*HEADINGS, *(found for found in sections if found not in HEADINGS)):
            if heading in sections:
                with formatter.section(heading):
                    formatter.write_dl(sections[heading])
