"""`normscape init`: a commented configuration for the user's own data."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from normscape.cli_shared import DATA, JsonOption, examples, print_json
from normscape.config import Config
from normscape.configinit import SIZES, init_brain, init_chairs


class Preset(StrEnum):
    """How large an experiment."""

    demo = "demo"
    cpu = "cpu"
    gpu = "gpu"


init_app = typer.Typer(help="Write a commented configuration for your data.", no_args_is_help=True, rich_markup_mode=None)
_SIZES = "; ".join(f"`{name}`: {meaning}" for name, meaning in SIZES.items())

CohortOption = Annotated[
    Path, typer.Option("--cohort", metavar="FOLDER", help="A prepared cohort. For raw scans it says how to prepare them.")
]
OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="FILE.yaml", help="The configuration.")]
SizeOption = Annotated[Preset, typer.Option("--size", help=f"{_SIZES}.")]
NameOption = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Of the experiment; the file's name otherwise.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(init_app, name="init", rich_help_panel=DATA)


@init_app.command(
    "brain",
    epilog=examples(
        "normscape init brain --cohort runs/cohorts/mine --out configs/mine.yaml",
        "normscape init brain --cohort runs/cohorts/mine --out configs/mine-demo.yaml --size demo",
    ),
)
def brain(
    cohort: CohortOption,
    out: OutOption = Path("configs/my-brain.yaml"),
    size: SizeOption = Preset.cpu,
    name: NameOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """For a prepared cohort of brain scans: split, range of ages, patches.

    It looks at the cohort's subjects, sites, ages and spacing, and writes down what it proposes and why.
    """
    config = init_brain(cohort, out, size.value, name=name, force=force)
    _tell(out, config, as_json)


@init_app.command("chairs", epilog=examples("normscape init chairs --out configs/my-chairs.yaml --size demo"))
def chairs(
    out: OutOption = Path("configs/my-chairs.yaml"),
    size: SizeOption = Preset.cpu,
    name: NameOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """For the rotating chairs that come with normscape."""
    config = init_chairs(out, size.value, name=name, force=force)
    _tell(out, config, as_json)


def _tell(out: Path, config: Config, as_json: bool) -> None:
    """What was written, and what to do with it."""
    if as_json:
        subjects = {"train_subjects": config.data.train_subjects, "test_subjects": config.data.test_subjects}
        print_json({"config": out, "name": config.name} | subjects)
        return
    named = shlex.quote(str(out))
    lines = [
        f"{out}: {config.data.train_subjects} subjects to learn from, {config.data.test_subjects} for the test",
        "read it, change what you like, then:",
        f"  normscape config check {named}",
        f"  normscape run {named}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
