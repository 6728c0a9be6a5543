"""`normscape export` and `normscape import`: a scored system as one file."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from normscape.cli_shared import (
    MODELS,
    RUNS,
    JsonOption,
    RunsOption,
    VerboseOption,
    complete_runs,
    examples,
    find_run,
    print_json,
)

SystemArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN|MODEL",
        help="A finished run's folder or name, or a registered model: models:/NAME@ALIAS or models:/NAME/VERSION.",
        autocompletion=complete_runs,
    ),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="FILE.zip", help="The bundle; one that is there is replaced.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE.zip", help="A bundle that `normscape export` wrote.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Name in the registry, instead of the one in the bundle.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    shown = examples(
        "normscape export chairs-demo --out chairs-demo.zip",
        "normscape export models:/normscape-chairs-demo@champion --out champion.zip",
    )
    app.command("export", rich_help_panel=MODELS, epilog=shown)(export_command)
    shown = examples("normscape import chairs-demo.zip", "normscape import champion.zip --model normscape-from-utrecht")
    app.command("import", rich_help_panel=MODELS, epilog=shown)(import_command)


def export_command(
    system: SystemArgument,
    out: OutOption,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a scored system as one file, for another registry.

    The bundle holds configuration, weights, detectors, model card, checksums, and the names and scores of the test subjects, by
    which versions are compared; no images. The same system gives the same bytes.
    """
    from normscape.tracking.bundle import export_model, export_run
    from normscape.tracking.store import default_tracking_uri

    if system.startswith("models:/"):
        done = export_model(system, default_tracking_uri(runs_dir), out)
    else:
        done = export_run(find_run(system, runs_dir), out)
    if as_json:
        print_json(asdict(done))
        return
    sys.stdout.write(f"{done.path}: {done.model}, {done.files} files, {done.bytes / 1e6:.1f} MB\nsha256 {done.sha256}\n")


def import_command(
    bundle: FileArgument,
    model: ModelOption = None,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check a bundle and register its system, as challenger.

    A bundle is refused, with the reason and exit code 2, when a checksum is wrong, a file is missing or too many, a path leads
    out of it, anything in it is a link or a pickle, its format is unknown, or it unpacks to more than 4 GiB.
    """
    from normscape.tracking.bundle import import_bundle
    from normscape.tracking.registry import CHALLENGER
    from normscape.tracking.store import default_tracking_uri

    done = import_bundle(bundle, default_tracking_uri(runs_dir), model=model)
    if as_json:
        print_json(asdict(done))
        return
    how = f"imported as {CHALLENGER}" if done.created else "was registered before"
    sys.stdout.write(f"{done.model} version {done.version} {how} (run {done.run_id})\n")
