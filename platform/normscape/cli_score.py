"""`normscape score`: a raw scan to its anomaly map, in the scan's own space."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from normscape.cli_shared import (
    MODELS,
    RUNS,
    JsonOption,
    QuietOption,
    RunsOption,
    VerboseOption,
    examples,
    find_run,
    print_json,
)
from normscape.console import ConsoleListener
from normscape.datasets.tabular import is_unknown, to_sex
from normscape.errors import UserError

if TYPE_CHECKING:
    from normscape.stages.scan import ScanModel

STEPS = ["preprocess", "patches"]
OLDEST = 130.0

ScanArgument = Annotated[Path, typer.Argument(metavar="SCAN", help="A T1 scan, .nii or .nii.gz.")]
AgeOption = Annotated[
    str | None, typer.Option("--age", metavar="YEARS", help="Age at the scan; `unknown`: read it from the scan.")
]
SexOption = Annotated[str, typer.Option("--sex", metavar="M|F", help="For the page only.")]
RunOption = Annotated[Path | None, typer.Option("--run", metavar="FOLDER", help="A finished run of an experiment on brains.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="URI", help="A registered model instead: models:/normscape-brain@champion.")
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="Where the results go; SCAN-scored otherwise.")]
StripOption = Annotated[
    str | None,
    typer.Option("--strip", metavar="HOW", help="Who finds the brain: deepbet, hdbet, mask, or none (it is stripped already)."),
]
MaskOption = Annotated[Path | None, typer.Option("--mask", metavar="FILE", help="The scan's brain mask, for --strip mask.")]
StrideOption = Annotated[
    int | None, typer.Option("--stride", min=1, metavar="VOXELS", help="From one patch to the next; brains.stride otherwise.")
]
ProjectionOption = Annotated[
    int | None, typer.Option("--steps", min=1, metavar="N", help="Projection steps of a patch; brains.steps otherwise.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    shown = examples(
        "normscape score new.nii.gz --age 63 --run brain-cpu",
        "normscape score new.nii.gz --age 63 --model models:/normscape-brain-cpu@champion --out maps",
        "normscape score stripped.nii.gz --age unknown --run brain-cpu --strip none --json",
    )
    app.command("score", rich_help_panel=MODELS, epilog=shown)(score_command)


def score_command(
    scan: ScanArgument,
    age: AgeOption = None,
    run: RunOption = None,
    model: ModelOption = None,
    sex: SexOption = "",
    out: OutOption = None,
    strip: StripOption = None,
    mask: MaskOption = None,
    stride: StrideOption = None,
    steps: ProjectionOption = None,
    runs_dir: RunsOption = RUNS,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Map where a scan leaves what is normal.

    Writes anomaly_map.nii.gz and its parts on the scan's own grid, overlay.png, regions.csv and a page.
    """
    from normscape.datasets.cohort import Scan
    from normscape.report.scan_page import build_scan_page
    from normscape.runner import sigterm_as_ctrl_c
    from normscape.stages.scan import describe, score_scan, stripped_by, write_summary

    if not scan.is_file():
        raise UserError(f"{scan}: no such file")
    years = _years(age)
    if mask is not None and not mask.is_file():
        raise UserError(f"--mask {mask}: no such file")
    loaded = stripped_by(_loaded(run, model, runs_dir, stride, steps), strip, mask)
    name = scan.name.removesuffix(".gz").removesuffix(".nii")
    folder = out or scan.parent / f"{name}-scored"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be made: {error.strerror}") from error
    with ExitStack() as stack:
        stack.enter_context(sigterm_as_ctrl_c())
        bar = stack.enter_context(ConsoleListener(STEPS, Console(stderr=True), quiet=quiet, verbose=verbose))

        def progress(step: str, done: int, total: int) -> None:
            if done == 0:
                bar.stage_started(step, resumed=False)
            bar.progress(step, done, total, "patch" if step == "patches" else "scan")

        known = Scan(scan.resolve(), name, age_years=years, sex=to_sex(sex), mask=mask and mask.resolve())
        result = score_scan(known, loaded, folder, estimate_age=age is not None and years is None, progress=progress)
        page = build_scan_page(result, loaded.grid.affine)
        write_summary(result)
    if as_json:
        print_json(describe(result) | {"folder": folder, "page": page})
        return
    lines = [f"{len(result.regions)} regions above {result.threshold:.2f}; highest {result.maps.anomaly.max():.2f}"]
    for i, region in enumerate(result.regions.slice(0, 3).to_pylist(), start=1):
        place = ", ".join(f"{region[f'scan_peak_{axis}_mm']:.0f}" for axis in "xyz")
        lines.append(f"  {i}. {region['peak_score']:.2f}, {region['volume_ml']:.1f} ml, peak at {place} mm")
    lines += [one.sentence for one in result.p_values]
    lines += [f"note: {note}" for note in result.notes]
    sys.stdout.write("\n".join([*lines, f"page  {page}"]) + "\n")


def _years(text: str | None) -> float | None:
    """The age that was given; None when it is not known.

    Raises:
        UserError: no age that anybody has.
    """
    if text is None or is_unknown(text):
        return None
    try:
        years = float(text)
    except ValueError as error:
        raise UserError(f"--age {text}: expected years as a number, for example 63") from error
    if not (math.isfinite(years) and 0 < years <= OLDEST):
        raise UserError(f"--age {text}: expected years above 0 and at most {OLDEST:g}")
    return years


def _loaded(run: Path | None, model: str | None, runs_dir: Path, stride: int | None, steps: int | None) -> ScanModel:
    """The scored system of a run or of a registered model."""
    from normscape.configio import load_config
    from normscape.datasets.prepared import COHORT_NAME
    from normscape.stages.provenance import choose_device
    from normscape.stages.scan import scan_model
    from normscape.stages.system import ScoredSystem, projecting_with

    if (run is None) == (model is None):
        raise UserError("give one of --run FOLDER and --model models:/NAME@ALIAS")
    if run is not None:
        folder = find_run(run, runs_dir)
    else:
        folder = _fetched(str(model), runs_dir)
    own = load_config(folder / "config.yaml")
    if own.data.source != "brain":
        raise UserError(f"{model or run}: a model of {own.data.source}, not of brains; it cannot score a scan")
    changes = {name: value for name, value in (("stride", stride), ("steps", steps)) if value is not None}
    config = own.model_copy(update={"brains": own.brains.model_copy(update=changes)})
    make = ScoredSystem.from_run if run is not None else ScoredSystem.from_package
    system = make(folder, choose_device(config.device), steps=config.brains.steps)
    described = folder / COHORT_NAME
    return scan_model(
        projecting_with(config, config.brains.steps), system, system.threshold,
        cohort_file=described if described.is_file() else None,
    )  # fmt: skip


def _fetched(uri: str, runs_dir: Path) -> Path:
    """The packaged system of a registered model, brought to this machine."""
    from normscape.tracking.registry import fetch_model
    from normscape.tracking.store import default_tracking_uri

    return fetch_model(uri, default_tracking_uri(runs_dir)).system
