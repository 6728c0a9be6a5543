"""`normscape prepare`: raw T1 scans into a prepared cohort and a page; scans with lesions into a table of cases."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from normscape.cli_shared import (
    DATA,
    AddressOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    examples,
    print_json,
    print_table,
)
from normscape.console import ConsoleListener
from normscape.datasets.cohort import Cohort, read_bids, read_ixi, read_table
from normscape.datasets.lesions import LAYOUTS, read_lesions, write_cases
from normscape.errors import UserError
from normscape.preprocessing.settings import PreprocessingSettings
from normscape.report.words import duration
from normscape.runner import sigterm_as_ctrl_c
from normscape.stages.files import locked

COHORTS = Path("runs/cohorts")
STAGES = ["scans", "volumes"]
_SHOWN_REASONS = 5
_DONE = """\
Each scan is read, stripped, corrected and registered; the page that the last line names shows all of them. What cannot be used is
left out with its reason. Stopped, the command goes on where it was."""


class Source(StrEnum):
    """How the scans lie, and where their ages stand."""

    ixi = "ixi"
    table = "table"
    bids = "bids"


prepare_app = typer.Typer(
    help="Turn raw scans into what experiments read.",
    epilog=examples(
        "normscape prepare table --table scans/subjects.csv --out runs/cohorts/mine",
        "normscape prepare ixi --root IXI-T1 --workers 8",
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
)

RootOption = Annotated[
    Path | None, typer.Option("--root", metavar="FOLDER", help="Of the scans; of a table, the folder that its paths start from.")
]
TableOption = Annotated[
    Path | None,
    typer.Option(
        "--table",
        metavar="FILE",
        help="For `table`: CSV or TSV, path, subject, age_years; sex, site, session, mask, labels, *_ml.",
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FOLDER", help="Where the cohort goes; runs/cohorts/NAME otherwise.")
]
NameOption = Annotated[str | None, typer.Option("--name", metavar="NAME", help="What tables and pages call the cohort.")]
SpacingOption = Annotated[int, typer.Option("--spacing", metavar="1|2", help="Side of a voxel in millimetres.")]
StripOption = Annotated[
    str, typer.Option("--strip", metavar="HOW", help="Who finds the brain: deepbet, hdbet, mask (a file a scan), or none.")
]
BiasOption = Annotated[bool, typer.Option("--no-bias-correction", help="Leave the bias field as it is, as the thesis does.")]
RegistrationOption = Annotated[str, typer.Option("--registration", metavar="HOW", help="simpleitk, or elastix.")]
AtlasOption = Annotated[Path | None, typer.Option("--atlas", metavar="FILE", help="A skull-stripped template, instead of SRI24.")]
OverlapOption = Annotated[
    float, typer.Option("--min-overlap", min=0.0, max=1.0, help="Least Dice with the atlas's mask; below, a scan is left out.")
]
VentriclesOption = Annotated[
    str, typer.Option("--ventricle-labels", metavar="A,B", help="Labels of the lateral ventricles, where the table has labels.")
]
UnknownAgeOption = Annotated[bool, typer.Option("--keep-unknown-ages", help="Keep scans whose age is not known.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Prepare so many scans at a time, on Ray.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(prepare_app, name="prepare", rich_help_panel=DATA)


@prepare_app.command(
    "ixi", help=f"Prepare the IXI data set.\n\n{_DONE}", epilog=examples("normscape prepare ixi --root IXI-T1 --workers 8")
)
@prepare_app.command(
    "table",
    help=f"Prepare the scans that a table names.\n\n{_DONE}",
    epilog=examples("normscape prepare table --table scans/subjects.csv --out runs/cohorts/mine"),
)
@prepare_app.command(
    "bids",
    help=f"Prepare a BIDS data set with participants.tsv.\n\n{_DONE}",
    epilog=examples("normscape prepare bids --root DATASET --spacing 1 --strip hdbet"),
)
def prepare(
    context: typer.Context,
    root: RootOption = None,
    table: TableOption = None,
    out: OutOption = None,
    name: NameOption = None,
    spacing: SpacingOption = 2,
    strip: StripOption = "deepbet",
    no_bias_correction: BiasOption = False,
    registration: RegistrationOption = "simpleitk",
    atlas: AtlasOption = None,
    min_overlap: OverlapOption = 0.85,
    ventricle_labels: VentriclesOption = "",
    keep_unknown_ages: UnknownAgeOption = False,
    workers: WorkersOption = None,
    address: AddressOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn raw T1 scans into a prepared cohort: one function and its options once, under the name of each source."""
    source = Source(str(context.info_name))
    settings = _settings(
        spacing_mm=spacing, strip=strip, bias_correction=not no_bias_correction, registration=registration, atlas=atlas,
        min_overlap=min_overlap, ventricle_labels=_labels(ventricle_labels),
    )  # fmt: skip
    cohort = _cohort(source, root, table, name, require_age=not keep_unknown_ages)
    where = out or COHORTS / _slug(f"{'ixi' if source is Source.ixi else cohort.name}-{spacing}mm")
    prepare_and_report(
        cohort, settings, where, workers=workers, address=address, quiet=quiet, verbose=verbose, as_json=as_json
    )  # fmt: skip


def _cohort(source: Source, root: Path | None, table: Path | None, name: str | None, *, require_age: bool) -> Cohort:
    """The scans that are meant.

    Raises:
        UserError: an option is missing, or belongs to another source; and what the readers raise.
    """
    if source is Source.table:
        if table is None:
            raise UserError("prepare table: give the table with --table FILE, its columns path, subject and age_years")
        return read_table(table, root=root, name=name, require_age=require_age)
    if table is not None:
        raise UserError(f"prepare {source}: --table is for `prepare table`; here --root FOLDER says where the scans are")
    if root is None:
        raise UserError(f"prepare {source}: say with --root FOLDER where the scans are")
    read = read_ixi if source is Source.ixi else read_bids
    return read(root, name=name, require_age=require_age)


@prepare_app.command(
    "cases", epilog=examples("normscape prepare cases lesions", "normscape prepare cases lesions --ages ages.csv --strip none")
)
def prepare_cases(
    source: Annotated[Path, typer.Argument(metavar="FOLDER|TABLE", help="Scans with lesions: a folder, or a table of scans.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The table of cases; cases.csv in the folder otherwise.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option("--layout", metavar="NAME", help=f"{', '.join(LAYOUTS)}; found out when not given.")
    ] = None,
    ages: Annotated[Path | None, typer.Option("--ages", metavar="FILE", help="A table with subjects and ages.")] = None,
    strip: Annotated[
        str | None,
        typer.Option("--strip", metavar="HOW", help="Who finds the brain, in all: deepbet, hdbet, mask, or none."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find scans with lesions.

    Writes the table that `brains.cases` takes; the scans stay where they are.
    """
    if strip is not None:
        _settings(strip=strip)
    found = read_lesions(source, layout=layout, ages=ages, strip=strip)
    out = out or (source if source.is_dir() else source.parent) / "cases.csv"
    if out.absolute() == source.absolute():
        raise UserError(f"--out {out}: this is the table that is read; name another file")
    write_cases(found, out)
    marked = sum(case.lesion is not None for case in found.cases)
    known = sum(case.age_years is not None for case in found.cases)
    if as_json:
        dropped_names = [f"{dropped.subject or dropped.path.name}: {dropped.reason}" for dropped in found.dropped]
        counts = {"cases": len(found.cases), "with_lesion": marked, "with_age": known}
        print_json({"table": out, "layout": found.layout} | counts | {"left_out": dropped_names})
        return
    sys.stdout.write(f"{out}: {len(found.cases)} cases ({found.layout}), {marked} with a lesion's mask, {known} with an age\n")
    for dropped in found.dropped:  # all of them: there is no page to look them up in
        sys.stdout.write(f"left out: {dropped.subject or dropped.path.name}: {dropped.reason}\n")
    sys.stdout.write(f"map them with `normscape run CONFIG --set brains.cases={out}`\n")


def prepare_and_report(
    cohort: Cohort,
    settings: PreprocessingSettings,
    out: Path,
    *,
    workers: int | None = None,
    address: str | None = None,
    quiet: bool = False,
    verbose: bool = False,
    as_json: bool = False,
) -> Path:
    """Prepare what is missing, gather it, build the page, and say how it ended.

    Args:
        cohort: which scans.
        settings: what to do with them.
        out: the cohort's folder.
        workers: scans at a time, on Ray; empty: one after the other in this process.
        address: of a Ray cluster.
        quiet: say nothing but how it ended.
        verbose: say more on the way.
        as_json: say how it ended as JSON.

    Returns:
        Path of the page.

    Raises:
        UserError: a mistake in what was given, or no scan that could be prepared.
    """
    from normscape.preprocessing.cohort import assemble, in_this_process, prepare_cohort
    from normscape.report.quality import build_quality_page

    began = time.monotonic()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made: {error.strerror}") from error
    with ExitStack() as stack:
        stack.enter_context(sigterm_as_ctrl_c())
        stack.enter_context(locked(out))
        bar = stack.enter_context(ConsoleListener(STAGES, Console(stderr=True), quiet=quiet, verbose=verbose))
        how: Any = in_this_process
        if workers or address:
            from normscape.distributed.cluster import connect
            from normscape.distributed.preprocess import RayTasks

            stack.enter_context(connect(address, cpus=workers or 1))
            how = RayTasks(workers or 1)
        bar.stage_started("scans", resumed=(out / "scans").exists())
        prepared = prepare_cohort(cohort, settings, out, workers=how, progress=lambda n, of: bar.progress("scans", n, of, "scan"))
        bar.stage_started("volumes", resumed=False)
        made = assemble(cohort, settings, out, prepared, progress=lambda n, of: bar.progress("volumes", n, of, "volume"))
        page = build_quality_page(out)
    flagged = sum(bool(flags) for flags in made.subjects["flags"].to_pylist())
    failed = [result for result in prepared if not result.good]
    left_out = [f"{result.scan.name}: {result.step}: {result.reason}" for result in failed]
    left_out += [f"{dropped.subject or dropped.path.name}: {dropped.reason}" for dropped in cohort.dropped]
    subjects, seconds = len(set(made.subjects["subject"].to_pylist())), time.monotonic() - began
    if as_json:
        counts = {"scans": len(made), "subjects": subjects, "flagged": flagged, "quarantined": len(failed)}
        about = {"name": cohort.name, "spacing_mm": made.spacing_mm, "seconds": seconds, "cohort": out, "page": page}
        print_json(about | counts | {"dropped": len(cohort.dropped), "left_out": left_out})
        return page
    table = Table(title=cohort.name, title_justify="left", show_header=False)
    for row in (
        ("prepared", f"{len(made)} scans of {subjects} subjects, {made.spacing_mm:g} mm"),
        ("flagged", str(flagged)),
        ("quarantined", _counted([result.step for result in failed])),
        ("dropped", str(len(cohort.dropped))),
        ("time", duration(seconds)),
        ("cohort", str(out)),
        ("page", str(page)),
    ):
        table.add_row(*map(Text, row))
    print_table(table)
    for line in left_out[:_SHOWN_REASONS]:
        sys.stdout.write(f"left out: {line}\n")
    if len(left_out) > _SHOWN_REASONS:
        sys.stdout.write(f"and {len(left_out) - _SHOWN_REASONS} more, see the page\n")
    return page


def _counted(steps: list[str]) -> str:
    """`3 (overlap 2, read 1)`."""
    return f"{len(steps)} ({', '.join(f'{step} {n}' for step, n in Counter(steps).most_common())})" if steps else "0"


def _settings(**values: Any) -> PreprocessingSettings:
    """Settings from options; all mistakes in one message."""
    try:
        return PreprocessingSettings(**values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            option = str(problem["loc"][0]).removesuffix("_mm").replace("_", "-")
            lines.append(f"--{option} {problem['input']}: {problem['msg']}")
        raise UserError("\n".join(lines)) from error


def _labels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UserError(f"--ventricle-labels {text}: expected numbers with commas between, for example 4,43") from error


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "cohort"
