"""A scan that the experiment has never seen: from its file to an anomaly map in its own space.

The scan goes through the preprocessing of the cohort that the model learned from, onto the atlas's grid; patches over the whole
brain are projected and scored; the map is brought back onto the scan's own grid. Writes, into a folder:

- `anomaly_map.nii.gz`, in [0, 1], on the scan's own grid: mean score of the patches at each voxel, weighed by the voxel's excess
  (`normscape.scoring.maps.ScanMaps.anomaly`); 0 outside the brain and where no patch lies;
- `score_map.nii.gz`: the score of the patches alone;
- `residual_map.nii.gz`: mean absolute residual, likewise, in standard deviations of the brain's intensities;
- `excess_map.nii.gz`: likewise, by how many standard deviations a voxel leaves what is usual for this age at its place; finer
  than the score, which is that of whole patches (`normscape.inversion.normals`);
- `gradient_map.nii.gz`: likewise, how much a change of a voxel would change how unusual the encoder finds the image
  (`normscape.inversion.projector.Projector.gradient`), in units of its mean over the brain; only where there is an encoder;
- `regions.csv`: the most abnormal regions, `normscape.scoring.maps.REGION_SCHEMA`;
- `preprocessed/`: what the preprocessing left.

A model of coarser voxels than scans are prepared with sees means of blocks (`normscape.datasets.coarse`). One of whole scans
gives a scan one score.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from normscape.config import Config
from normscape.datasets.coarse import coarsened, padded, whole_factor
from normscape.datasets.cohort import Scan
from normscape.datasets.contrast import PARAMETERS, SCHEMA, ContrastShifts, ContrastTable, measure_contrast
from normscape.datasets.patches import AGE_COLUMN, INTENSITY_RANGE_SD, PatchSource, simulated_spacing
from normscape.datasets.prepared import COHORT_NAME, SUBJECT_SCHEMA, PreparedCohort
from normscape.errors import DataError, UserError
from normscape.preprocessing.atlas import LPS, Atlas, load_atlas
from normscape.preprocessing.scan import MASK_NAME, T1_NAME, TRANSFORM_NAME, PreparedScan, prepare_scan
from normscape.preprocessing.settings import PreprocessingSettings
from normscape.scoring.conformal import Calibration
from normscape.scoring.maps import PatchRater, ScanMaps, ValueReader, on_grid, regions, scan_maps
from normscape.stages.files import read_json
from normscape.stages.scan_calibration import PValue, most_background, p_values
from normscape.stages.system import ScoredSystem

MAP_NAME, SCORE_NAME = "anomaly_map.nii.gz", "score_map.nii.gz"
RESIDUAL_NAME, EXCESS_NAME, GRADIENT_NAME = "residual_map.nii.gz", "excess_map.nii.gz", "gradient_map.nii.gz"
REGIONS_NAME, SUMMARY_NAME = "regions.csv", "summary.json"
SIMULATED = "simulated"
MUCH = 0.05
"""Share of a brain above the threshold that is worth a word: of two healthy test scans of the known scanner at most 0.1 % are."""


@dataclass(frozen=True)
class ScanModel:
    """What it takes to score a scan.

    Attributes:
        config: the experiment that the rater comes from.
        rater: scores patches.
        threshold: scores above it are called anomalous.
        settings: the preprocessing that the model's scans had.
        atlas: at the spacing that scans are prepared with.
        frame_mask: uint8 (Z, Y, X), the atlas mask from whose middle positions count.
        grid: atlas and that mask on the grid of the model and of its maps, which may be coarser, or padded to hold a cube.
        cohort: what the scans that the model learned from are called.
        healthy_scans: scores of whole healthy scans; None where none are known.
        patch_subjects: healthy subjects behind p-values of single patches; 0 where there are none.
    """

    config: Config
    rater: PatchRater
    threshold: float
    settings: PreprocessingSettings
    atlas: Atlas
    frame_mask: NDArray[np.uint8]
    grid: Atlas
    cohort: str
    healthy_scans: Calibration | None = None
    patch_subjects: int = 0


@dataclass(frozen=True)
class ScoredScan:
    """A scored scan.

    Attributes:
        scan: which one.
        prepared: what the preprocessing measured.
        maps: on the atlas's grid.
        mask: uint8 (Z, Y, X), the brain there.
        regions: table of `REGION_SCHEMA`.
        threshold: of the anomaly map, above which regions lie.
        notes: what a reader should know, a sentence each.
        p_values: how often a healthy subject looks as abnormal, as far as healthy subjects are known.
        folder: of the files.
    """

    scan: Scan
    prepared: PreparedScan
    maps: ScanMaps
    mask: NDArray[np.uint8]
    regions: pa.Table
    threshold: float
    folder: Path
    notes: tuple[str, ...] = field(default=())
    p_values: tuple[PValue, ...] = field(default=())


def scan_model(config: Config, rater: PatchRater, threshold: float, *, cohort_file: Path | None = None) -> ScanModel:
    """Put together what scoring a scan needs.

    Args:
        config: the experiment.
        rater: scores patches; usually the scored system.
        threshold: of the anomaly score.
        cohort_file: `cohort.json` of the prepared cohort that the model learned from; `data.root` holds it where this is None.

    Raises:
        UserError: a model of something else than brains.
        DataError: settings or template of the cohort cannot be read.
    """
    if config.data.source != "brain":
        raise UserError(f"the model is of {config.data.source}, not of brains: it cannot score a scan")
    path = cohort_file if cohort_file is not None else config.data.root and config.data.root / COHORT_NAME
    described: dict[str, Any] = read_json(path) if path else {"source": SIMULATED, "name": "simulated cohort"}
    if path and not described:
        raise DataError(f"{path}: expected the description of the cohort that the model learned from, found none")
    simulated = described.get("source") == SIMULATED
    spacing = described.get("spacing_mm", simulated_spacing(config.data.spacing_mm))
    given: dict[str, Any] = {} if simulated else described.get("settings", {})
    try:
        settings = PreprocessingSettings.model_validate({"spacing_mm": round(spacing)} | given)
    except ValidationError as error:
        raise DataError(f"{path}: not the settings of a preprocessing ({error.errors()[0]['msg']})") from error
    atlas = load_atlas(settings.spacing_mm, settings.atlas)
    frame = atlas.mask
    if simulated:  # its patches count from a mask of its own, which is nearly the atlas's
        from normscape.datasets.simulated import atlas_template

        frame = atlas_template(settings.spacing_mm)[1]
    none = np.zeros((0, *frame.shape))
    empty = PreparedCohort(
        path or Path(), "", "", atlas.spacing_mm, atlas.affine, SUBJECT_SCHEMA.empty_table(),
        none.astype(np.float16), none.astype(np.uint8), atlas.t1, frame,
    )  # fmt: skip
    placed = _gridded(empty, config)
    grid = replace(
        atlas, spacing_mm=placed.spacing_mm, t1=placed.atlas, mask=placed.atlas_mask, origin=placed.affine[:3, 3]
    )  # fmt: skip
    known = rater.healthy.scores.values() if isinstance(rater, ScoredSystem) and rater.healthy is not None else ()
    return ScanModel(
        config, rater, threshold, settings, atlas, frame, grid, str(described.get("name", "")),
        healthy_scans=rater.healthy_scans if isinstance(rater, ScoredSystem) else None,
        patch_subjects=max((one.subjects for one in known), default=0),
    )  # fmt: skip


def _gridded(cohort: PreparedCohort, config: Config) -> PreparedCohort:
    """A cohort on the grid that the model knows; as it is where that is its own.

    Raises:
        DataError: the model's voxels are no whole multiple of the cohort's.
    """
    factor = whole_factor(config.data.spacing_mm, cohort.spacing_mm)
    if factor is None:
        raise DataError(
            f"{cohort.folder}: scans are prepared with voxels of {cohort.spacing_mm:g} mm, and data.spacing_mm "
            f"({config.data.spacing_mm:g}) is no multiple of that"
        )
    coarse = coarsened(cohort, factor)
    return padded(coarse, config.image_size) if config.whole_scans else coarse


def score_scan(
    scan: Scan,
    model: ScanModel,
    folder: Path,
    *,
    estimate_age: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> ScoredScan:
    """Preprocess a scan, map it, and write the map in the scan's own space.

    Args:
        scan: its file, and what is known of the subject.
        model: what to score with.
        folder: receives the files; made when it does not exist.
        estimate_age: an age that is not known is read from the scan by the age network: the median over its patches.
        progress: told (step, done, in all).

    Raises:
        DataError: the scan cannot be prepared, the age is missing, or no patch holds enough of the brain.
        UserError: a package that the preprocessing needs is not installed.
    """
    age = next((a.name for a in model.config.value_attributes if a.column == AGE_COLUMN), None)
    if scan.age_years is None and age is not None and not estimate_age:
        raise DataError(
            f"{scan.path.name}: the age is not known. The model compares a brain with brains of the same age: without it an old "
            "brain would look ill, and a young one with wide ventricles well. Give --age YEARS, or --age unknown to have it read "
            "from the scan itself, which hides what makes a brain look older than it is"
        )

    def tell(step: str, done: int, total: int) -> None:
        if progress is not None:
            progress(step, done, total)

    tell("preprocess", 0, 1)
    prepared = prepare_scan(scan, model.settings, model.atlas, folder / "preprocessed")
    if not prepared.good:
        raise DataError(f"{scan.path}: cannot be prepared ({prepared.step}): {prepared.reason}")
    tell("preprocess", 1, 1)
    source = _patches(scan, prepared, model, folder)
    config = model.config
    grid = on_grid(source, 0, stride=config.brains.stride, max_background=most_background(config))
    if not len(grid):
        raise DataError(f"{scan.path}: no patch with a side of {config.image_size} voxels holds enough of the brain")
    guessed = scan.age_years is None and age is not None
    if guessed:
        scan = replace(scan, age_years=_read_age(age or "", grid, model))
        grid = replace(grid, cohort=_patches(scan, prepared, model, folder).cohort)
    columns = {a.name: a.column or "" for a in config.value_attributes}
    tell("patches", 0, len(grid))
    [maps] = scan_maps(
        grid, columns, model.rater, batch_size=config.brains.batch_size, progress=lambda n, of: tell("patches", n, of)
    )  # fmt: skip
    found = _write(scan, prepared, maps, model, folder)
    mask = np.asarray(source.cohort.masks[0])
    notes = _notes(scan, prepared, maps, model, mask)
    if guessed:
        notes = (f"The age was not given: {scan.age_years:.0f} years was read from the scan by the age network.", *notes)
    threshold = maps.anomaly_threshold(model.threshold)
    p = p_values(maps, config, model.healthy_scans, model.patch_subjects)
    return ScoredScan(scan, prepared, maps, mask, found, threshold, folder, notes, tuple(p))


def _read_age(name: str, grid: PatchSource, model: ScanModel) -> float:
    """Median over the patches of what the age network reads, within the ages that the model knows."""
    if not isinstance(model.rater, ValueReader):
        raise UserError("--age unknown: this model holds no network that reads the age from a scan; give --age YEARS")
    rows = torch.arange(len(grid)).split(model.config.brains.batch_size)
    years = torch.cat([model.rater.read(name, grid.draw(part)[0]) for part in rows]).median().item()
    attribute = next(a for a in model.config.value_attributes if a.name == name)
    return min(max(years, attribute.value_min), attribute.value_max)


def _patches(scan: Scan, prepared: PreparedScan, model: ScanModel, folder: Path) -> PatchSource:
    """The prepared scan as a cohort of one, on the model's grid, to cut patches from."""
    import SimpleITK as sitk

    t1, mask = (sitk.GetArrayFromImage(sitk.ReadImage(str(prepared.folder / name))) for name in (T1_NAME, MASK_NAME))
    mask = (mask > 0).astype(np.uint8)
    person = {name: getattr(scan, name, "") for name in ("subject", "session", "age_years", "sex", "site")}
    subjects = pa.Table.from_pylist([person | {"scan": str(scan.path)}], schema=SUBJECT_SCHEMA)
    cohort = PreparedCohort(
        folder, scan.name, "table", model.atlas.spacing_mm, model.atlas.affine, subjects,
        t1[None].astype(np.float16), mask[None], model.atlas.t1, model.frame_mask,
    )  # fmt: skip
    cohort = _gridded(cohort, model.config)
    try:
        measured = measure_contrast(cohort.volumes[0][cohort.masks[0] > 0])
    except DataError as error:
        raise DataError(f"{scan.path}: {error}") from error
    names = {"subject": scan.subject, "session": scan.session}
    contrast = ContrastTable.from_table(pa.Table.from_pylist([names | measured], schema=SCHEMA))
    shifts = None
    if model.config.data.contrast_augmentation != "none":  # only so that its value, no shift, is there
        shifts = ContrastShifts(torch.eye(PARAMETERS), torch.zeros(PARAMETERS))
    side = model.config.image_size
    nothing = np.zeros(1, np.int32), np.zeros((1, 3), np.int16)
    whole = model.config.whole_scans
    return PatchSource(cohort, side, *nothing, contrast, shifts, model.config.data.background, whole)


def _write(scan: Scan, prepared: PreparedScan, maps: ScanMaps, model: ScanModel, folder: Path) -> pa.Table:
    """The maps on the scan's grid, and the table of regions."""
    import SimpleITK as sitk

    from normscape.preprocessing.registration import read_transform, to_scan_space

    transform = read_transform(prepared.folder / TRANSFORM_NAME)
    reference = sitk.ReadImage(str(scan.path))
    while reference.GetDimension() > 3:  # a fourth side of length one
        reference = reference[(slice(None),) * (reference.GetDimension() - 1) + (0,)]
    volumes = {MAP_NAME: maps.anomaly, SCORE_NAME: maps.score, EXCESS_NAME: maps.excess}
    volumes[RESIDUAL_NAME] = maps.residual * INTENSITY_RANGE_SD
    volumes |= {} if maps.gradient is None else {GRADIENT_NAME: maps.gradient}
    for name, volume in volumes.items():
        placed = to_scan_space(model.grid.image(volume.astype(np.float32)), transform, reference)
        sitk.WriteImage(placed, str(folder / name), useCompression=True)

    def to_scan(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([transform.TransformPoint((LPS @ point).tolist()) for point in points]).reshape(-1, 3) @ LPS

    threshold = maps.anomaly_threshold(model.threshold)
    found = regions(maps.anomaly, threshold, model.grid.spacing_mm, model.grid.affine, to_scan=to_scan)
    pyarrow.csv.write_csv(found, folder / REGIONS_NAME)
    return found


def _notes(scan: Scan, prepared: PreparedScan, maps: ScanMaps, model: ScanModel, mask: NDArray[np.uint8]) -> tuple[str, ...]:
    notes = [f"The model learned from: {model.cohort}."] if model.cohort else []
    if "simulated" in model.cohort:
        notes.append("Simulated brains are no measure of what is normal in a real scan: take this as a trial of the tool.")
    ages = (attribute for attribute in model.config.value_attributes if attribute.column == AGE_COLUMN)
    for attribute in ages:
        if scan.age_years is not None and not attribute.value_min <= scan.age_years <= attribute.value_max:
            span = f"{attribute.value_min:g} to {attribute.value_max:g}"
            notes.append(f"The model knows ages from {span} years; {scan.age_years:g} lies outside.")
    notes += [f"Preprocessing: {flag}." for flag in prepared.flags]
    bare = 1 - float(maps.covered.sum()) / max(int((mask > 0).sum()), 1)
    if bare > 0.005:
        notes.append(f"{bare:.0%} of the brain, at its surface, lies in no patch and has no score.")
    above = maps.share_above(maps.anomaly_threshold(model.threshold))
    if above > MUCH:
        notes.append(
            f"{above:.0%} of the brain is called abnormal. Unless a lesion is that large, the scan as a whole is unlike those "
            "that the model knows (another scanner, sequence or contrast agent), and most of these regions are false: the order "
            "still tells something, their number does not."
        )
    return tuple(notes)


def stripped_by(model: ScanModel, strip: str | None, mask: Path | None) -> ScanModel:
    """The model with another way to find the brain; the cohort's own where nothing is asked for.

    Raises:
        UserError: no such way.
    """
    how = strip or ("mask" if mask is not None else model.settings.strip)
    if how == "mask" and mask is None:
        if strip is not None:
            raise UserError("--strip mask: give the brain mask with --mask FILE")
        how = "deepbet"  # the cohort came with masks, this scan does not
    try:
        settings = PreprocessingSettings.model_validate(model.settings.model_dump() | {"strip": how})
    except ValidationError as error:
        raise UserError(f"--strip {how}: choose deepbet, hdbet, mask or none") from error
    return replace(model, settings=settings)


def describe(result: ScoredScan) -> dict[str, Any]:
    """A few numbers for whoever asked, and for `summary.json`."""
    table: Mapping[str, Any] = result.regions.slice(0, 1).to_pydict()
    peak = float(result.maps.anomaly.max())
    return {
        "scan": str(result.scan.path),
        "age_years": result.scan.age_years,
        "peak_score": round(peak, 4),
        "threshold": round(result.threshold, 4),
        "regions": len(result.regions),
        "peak_scan_mm": [round(table[f"scan_peak_{axis}_mm"][0], 1) for axis in "xyz"] if len(result.regions) else None,
        "patches": result.maps.patches,
        "score": round(float(result.maps.score.max()), 4) if result.maps.patches == 1 else None,
        "p_values": [{"about": one.about, "p": round(one.p, 6), "subjects": one.subjects} for one in result.p_values],
        "notes": list(result.notes),
    }


def write_summary(result: ScoredScan) -> None:
    """Write `summary.json`."""
    text = json.dumps(describe(result), indent=2, ensure_ascii=False, allow_nan=False)
    (result.folder / SUMMARY_NAME).write_text(text + "\n", encoding="utf-8")
