"""Configurations for a user's own data: a few lines, each with its reason, over one of those that come with normscape.

A prepared cohort is looked at (subjects, sites, ages, spacing) and the lines that depend on it are proposed. Everything else is
inherited from `configs/<experiment>/<size>.yaml`, so that what a person reads is what a person decides.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

import normscape
from normscape.config import Config
from normscape.configio import load_config
from normscape.datasets.prepared import COHORT_NAME, PreparedCohort
from normscape.errors import ConfigError, DataError, UserError

Size = Literal["demo", "cpu", "gpu"]
SIZES: dict[str, str] = {
    "demo": "minutes on two CPU cores: to see that everything runs",
    "cpu": "hours on two CPU cores: a real experiment without a GPU",
    "gpu": "one GPU",
}
MIN_SUBJECTS = 6
"""Fewer subjects cannot be learned from and tested on."""
TEST_SHARE = 0.3
CALIBRATION_SHARE = 0.08
"""Of subjects in neither split, on whom thresholds are chosen; only where there are enough of them."""
CALIBRATION_FROM = 20
"""Subjects from which on some are kept for the thresholds."""
AGE_STEP = 5.0
"""The range of ages ends at multiples of this many years."""
POSITION_MM = 90.0
"""Half of the range of positions in the configurations that come with normscape: SRI24's brain."""
_NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class CohortFacts:
    """What a configuration depends on.

    Attributes:
        folder: of the prepared cohort.
        name: what tables and pages call it.
        scans: in all.
        subjects: with a known age.
        ageless: subjects without one; they are left out.
        ages: least and largest, in years.
        sites: name to number of subjects; empty names for unknown ones.
        spacing_mm: side of a voxel.
        reach_mm: from the middle of the atlas's brain to the farthest face of its bounding box.
    """

    folder: Path
    name: str
    scans: int
    subjects: tuple[str, ...]
    ageless: int
    ages: tuple[float, float]
    sites: dict[str, int]
    spacing_mm: float
    reach_mm: float


@dataclass(frozen=True)
class Line:
    """One line of a configuration: `key: value  # why`, further in for each section above it."""

    key: str
    value: Any = None
    why: str = ""
    inner: Sequence[Line] = field(default_factory=tuple)


def init_brain(folder: Path, out: Path, size: Size = "cpu", *, name: str | None = None, force: bool = False) -> Config:
    """Write a configuration for a prepared cohort.

    Args:
        folder: of the cohort, as `normscape prepare` leaves it.
        out: the file.
        size: which configuration of `configs/brain` to build on.
        name: of the experiment; after the file when empty.
        force: replace a file that is there.

    Returns:
        The configuration, read back from the file.

    Raises:
        UserError: no prepared cohort (the message says how to make one), too few subjects, or the file is there.
    """
    facts = look_at(folder)
    preset, path = preset_path("brain", size), _free(out, force)
    base = load_config(preset)
    text = _rendered(_brain_lines(facts, base, _relative(preset, path), name or _slug(path.stem), size), _brain_head(facts))
    return _written(path, text)


def init_chairs(out: Path, size: Size = "cpu", *, name: str | None = None, force: bool = False) -> Config:
    """Write a configuration for the chairs that come with normscape; arguments and errors as of `init_brain`."""
    preset, path = preset_path("chairs", size), _free(out, force)
    base = load_config(preset)
    lines = [
        Line("base", _relative(preset, path), f"everything that is not said here; {SIZES[size]}"),
        Line("name", name or _slug(path.stem), "of the run's folder and of its MLflow experiment"),
        Line("description", "Rotating chairs", "one line for tables and pages"),
        Line("seed", base.seed, "every random choice follows from it; run with others to see how much it matters"),
        Line("data", inner=[
            Line("train_subjects", base.data.train_subjects, "chair types to learn from, of 54"),
            Line("test_subjects", base.data.test_subjects, "types that nothing is fitted to or chosen on"),
            Line("angle_max_degrees", base.data.angle_max_degrees, "chairs turn from 0 to this angle"),
            Line("angle_step_degrees", base.data.angle_step_degrees, "from one view to the next: smaller is more images"),
        ]),
        Line("gan", inner=[Line("steps", base.gan.steps, "of the GAN's training; most of the time goes here")]),
    ]  # fmt: skip
    head = [
        "Rotating chairs, rendered from models that come with normscape.",
        "RC-49 instead: data.source rc49 and data.path FILE.h5.",
    ]
    return _written(path, _rendered(lines, head))


def preset_path(experiment: str, size: str) -> Path:
    """A configuration that comes with normscape: below this folder, or in the clone that the package lies in.

    Raises:
        UserError: it is in neither place.
    """
    name = Path("configs") / experiment / f"{size}.yaml"
    found = next(
        (base / name for base in (Path(), Path(normscape.__file__).resolve().parents[2]) if (base / name).is_file()), None
    )
    if found is None:
        raise UserError(
            f"{name}: not found; `normscape init` builds on the repository's configurations: call it in a clone of it"
        )
    return found.resolve()


# ---- looking at data -----------------------------------------------------------------------------------------------------


def look_at(folder: Path) -> CohortFacts:
    """What there is in a prepared cohort.

    Raises:
        UserError: it is none, with the command that makes one; or it has too few subjects of known age.
    """
    if not folder.is_dir():
        raise UserError(f"--cohort {folder}: no such folder")
    if not (folder / COHORT_NAME).is_file():
        raise UserError(how_to_prepare(folder))
    cohort = PreparedCohort.open(folder)
    rows = cohort.subjects.select(["subject", "age_years", "site"]).to_pylist()
    site_of = {row["subject"]: row["site"] or "" for row in reversed(rows) if row["age_years"] is not None}
    if len(site_of) < MIN_SUBJECTS:
        raise DataError(
            f"{folder}: {len(site_of)} subjects of known age; at least {MIN_SUBJECTS} are needed, for training and test"
        )
    known = pc.drop_null(cohort.subjects["age_years"])
    found = np.argwhere(cohort.atlas_mask)
    reach = (found.max(0) - found.min(0) + 1).max() / 2 * cohort.spacing_mm
    return CohortFacts(
        folder=folder.resolve(),
        name=cohort.name,
        scans=len(cohort),
        subjects=tuple(sorted(site_of)),
        ageless=len({row["subject"] for row in rows} - set(site_of)),
        ages=(pc.min(known).as_py(), pc.max(known).as_py()),
        sites=dict(Counter(site_of.values()).most_common()),
        spacing_mm=cohort.spacing_mm,
        reach_mm=float(reach),
    )


def how_to_prepare(folder: Path) -> str:
    """The command that makes a prepared cohort of a folder's scans, by what lies in it."""
    shown, out = shlex.quote(str(folder)), f"runs/cohorts/{_slug(folder.resolve().name)}"
    then = f"then  normscape init brain --cohort {out}"
    scans = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.name.endswith(_NIFTI))
    if not scans:
        return f"{folder}: neither a prepared cohort ({COHORT_NAME} is missing) nor a folder of NIfTI files (.nii, .nii.gz)"
    head = f"{folder}: {len(scans)} NIfTI files that are not prepared yet."
    if any(re.fullmatch(r"IXI\d+-.*T1\.nii(\.gz)?", path.name) for path in scans):
        return f"{head} They are IXI's:\nfirst  normscape prepare ixi --root {shown} --out {out}\n{then}"
    if (folder / "participants.tsv").is_file():
        return f"{head} They are a BIDS data set:\nfirst  normscape prepare bids --root {shown} --out {out}\n{then}"
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
    if tables:
        table = shlex.quote(str(tables[0]))
        return f"{head} A table lies with them:\nfirst  normscape prepare table --table {table} --out {out}\n{then}"
    rows = [f"       {path.as_posix()},{path.name.removesuffix('.gz').removesuffix('.nii')},AGE,SITE" for path in scans[:2]]
    table = shlex.quote(str(folder / "subjects.csv"))
    return "\n".join(
        [
            f"{head} Their ages are not known.",
            f"first  write {table}, a line a scan:",
            "       path,subject,age_years,site",
            *rows,
            f"then   normscape prepare table --table {table} --out {out}",
            then,
        ]
    )


def proposed_split(subjects: int) -> tuple[int, int, int]:
    """Subjects for training, for the test, and for choosing thresholds."""
    test = max(2, round(TEST_SHARE * subjects))
    kept = round(CALIBRATION_SHARE * subjects) if subjects >= CALIBRATION_FROM else 0
    return subjects - test - kept, test, kept


def age_range(ages: tuple[float, float]) -> tuple[float, float]:
    """Multiples of `AGE_STEP` around all ages, and at least twice that apart."""
    low, high = math.floor(ages[0] / AGE_STEP) * AGE_STEP, math.ceil(ages[1] / AGE_STEP) * AGE_STEP
    while high - low < 2 * AGE_STEP:
        low, high = max(0.0, low - AGE_STEP), high + AGE_STEP
    return low, high


# ---- lines ---------------------------------------------------------------------------------------------------------------


def _brain_head(facts: CohortFacts) -> list[str]:
    (low, high), people = facts.ages, f"{len(facts.subjects)} subjects of known age"
    sites = ", ".join(f"{site or 'unknown'} {count}" for site, count in facts.sites.items())
    head = [
        f"{facts.name}: {facts.scans} scans; {people}, {low:.0f} to {high:.0f} years; {facts.spacing_mm:g} mm.",
        f"Sites: {sites}.",
    ]
    if facts.ageless:
        head.append(f"Left out, because their age is not known: {facts.ageless} subjects.")
    return head


def _brain_lines(facts: CohortFacts, base: Config, inherited: str, name: str, size: Size) -> list[Line]:
    train, test, kept = proposed_split(len(facts.subjects))
    low, high = age_range(facts.ages)
    side_mm = base.image_size * facts.spacing_mm
    wanted_mm = base.image_size * base.data.spacing_mm
    patch = f"patches of {base.image_size} voxels, {side_mm:g} mm wide"
    if side_mm != wanted_mm:
        patch += (
            f"; `{size}` is made for {wanted_mm:g} mm: prepare with --spacing {base.data.spacing_mm:g}, or expect other numbers"
        )
    attributes = [
        Line("- name", "age", "the known value that brains are compared under", inner=[
            Line("value_min", low, "years that are 0 on the network's scale; ages beyond are extrapolated"),
            Line("value_max", high, "years that are 1"),
        ]),
    ]  # fmt: skip
    if facts.reach_mm > POSITION_MM:
        reach = math.ceil(facts.reach_mm / 10) * 10.0
        attributes.append(Line("- name", "position", "where a patch lies", inner=[
            Line("value_min", -reach, "millimetres from the middle of this cohort's atlas, which is larger than SRI24"),
            Line("value_max", reach, "likewise"),
        ]))  # fmt: skip
    ages = tuple(round(low + (high - low) * share) for share in (0.15, 0.5, 0.85))
    lines = [
        Line("base", inherited, f"everything that is not said here; {SIZES[size]}"),
        Line("name", name, "of the run's folder and of its MLflow experiment"),
        Line("description", f"T1 brain patches of {facts.name}", "one line for tables and pages"),
        Line("seed", base.seed, "every random choice follows from it; another one is another split, too"),
        Line("data", inner=[
            Line("root", str(facts.folder), "the prepared cohort"),
            Line("spacing_mm", facts.spacing_mm, f"as it was prepared; {patch}"),
            Line("train_subjects", train, "to learn from; sites and thirds of age have the same shares as in the test"),
            Line("test_subjects", test, "that nothing is fitted to and nothing is chosen on"),
        ]),
        Line("attributes", why="of each only what differs from the file above", inner=attributes),
    ]  # fmt: skip
    if kept:
        why = f"patches of the {kept} subjects in neither split, on which thresholds are chosen"
        lines.append(Line("projection", inner=[Line("calibration_samples", base.projection.calibration_samples or 500, why)]))
    elif base.projection.calibration_samples:
        why = "too few subjects to keep some for thresholds: they come from training subjects, and are too sure of themselves"
        lines.append(Line("projection", inner=[Line("calibration_samples", 0, why)]))
    if train < base.scoring.folds:
        lines.append(Line("scoring", inner=[Line("folds", train, "of the cross-validation: at most one a training subject")]))
    lines.append(Line("brains", inner=[Line("ages", list(ages), "at which brains are generated for the page")]))
    return lines


def _rendered(lines: Sequence[Line], head: Sequence[str]) -> str:
    """YAML with a comment a line, in a column of its own where it fits."""
    told = [f"# {line}" for line in (*head, "Every key: docs/configuration.md; all values: normscape config show THIS_FILE.")]
    return "\n".join([*told, "", *_text(lines, "")]) + "\n"


def _text(lines: Sequence[Line], indent: str) -> list[str]:
    found = []
    for line in lines:
        value = "" if line.value is None else f" {json.dumps(line.value, ensure_ascii=False)}"
        written = f"{indent}{line.key}:{value}"
        found.append(f"{written:<44}  # {line.why}" if line.why else written)
        found += _text(line.inner, indent + "  ")
    return found


def _written(path: Path, text: str) -> Config:
    """Write the file and read it back.

    Raises:
        UserError: it cannot be written.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        config = load_config(aside)
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written: {error.strerror}") from error
    except ConfigError:
        aside.unlink(missing_ok=True)
        raise
    return config


def _free(path: Path, force: bool) -> Path:
    if path.exists() and not force:
        raise UserError(f"--out {path}: is there already; --force replaces it, another --out leaves it")
    return path


def _relative(preset: Path, out: Path) -> str:
    """The preset as seen from the file that inherits from it."""
    return Path(os.path.relpath(preset, out.resolve().parent)).as_posix()


def _slug(text: str) -> str:
    """A name of an experiment or a folder."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:60] or "mine"
