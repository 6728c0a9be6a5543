"""Stage `brains`: whole brains from overlapping patches (thesis II.B, IV.B; figures 12 and 13). Only for data source brain.

Writes, volumes as NIfTI on the atlas's grid:

- `generated/identity-<i>_age-<years>.nii.gz`: a few identities at each age, in standard deviations of the brain's intensities;
- `ventricles.parquet`: kind (generated | scan), identity (number, or subject and session), age_years, volume_ml;
- `maps.parquet`, a row a map: name, subject, session, age_years, blot (0, 1), radius, contrast and centre of the blot, peak and
  mean of the anomaly map, whether its peak lies in the blot, area under the ROC curve of the voxels (anomaly, score, residual,
  excess, gradient), patches, covered (share of the brain that lies in a patch), seconds (of both maps of a scan, with the first);
- `maps/<name>_{scan,reconstruction,anomaly,score,residual,excess,gradient}.nii.gz`: the anomaly map of `normscape.scoring.maps`;
  `score`, that of the patches alone; `excess`, by how many standard deviations a voxel leaves what is usual for the scan's age at
  its place (`normscape.inversion.normals`), missing where places are not known; `gradient`, how much a change of a voxel would
  change how unusual the encoder finds the image, in units of its mean over the brain, missing where there is none;
- `regions.parquet`: name, and the columns of `normscape.scoring.maps.REGION_SCHEMA`, above the anomaly map's threshold;
- `generated.npy` uint8 (identities, ages, 1, H, W), `maps.npy` uint8 (maps, 5, 1, H, W): slices for the page, described in
  `slices.json`; the five are scan, reconstruction, anomaly, excess and blot;
- with `brains.calibration_scans` what `normscape.stages.scan_calibration` writes;
- with `brains.cases` what `normscape.stages.cases` writes.

A map that was finished before the stage was cut off is not made again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from normscape.config import POSITION_COLUMN, Config
from normscape.datasets import slices
from normscape.datasets.blots import draw_blot, standard_blots
from normscape.datasets.patches import AGE_COLUMN, INTENSITY_RANGE_SD, PatchSource
from normscape.errors import DataError
from normscape.inversion.brains import generate_brain
from normscape.networks.generator import draw_latents
from normscape.scoring.maps import (
    EXCESS_SHOWN,
    REGION_SCHEMA,
    ScanMaps,
    grid_centres,
    on_grid,
    regions,
    scan_maps,
    unit_volume,
    with_image,
)
from normscape.scoring.metrics import auroc, resample_counts
from normscape.scoring.ventricles import fluid_levels, ventricle_region, ventricle_volume_ml
from normscape.stages.cases import map_cases
from normscape.stages.core import StageContext
from normscape.stages.files import read_json, write_json
from normscape.stages.prepare import open_prepared
from normscape.stages.scan import scan_model
from normscape.stages.scan_calibration import calibrate_scans, most_background, spread_by_age
from normscape.stages.shards import written_aside
from normscape.stages.system import ScoredSystem, projecting_with
from normscape.training.seeding import seeded

SHOWN_IDENTITIES = 3
"""Generated brains that are written as volumes and shown; of all others only the ventricles are kept."""
PANELS = ("scan", "reconstruction", "anomaly", "excess", "blot")
AREAS = ("anomaly", "score", "residual", "excess", "gradient")
"""Maps whose voxels are compared with the blot."""
VENTRICLE_SCHEMA = pa.schema(
    [("kind", pa.string()), ("identity", pa.string()), ("age_years", pa.float64()), ("volume_ml", pa.float64())]
)
MAP_SCHEMA = pa.schema(
    [("name", pa.string()), ("subject", pa.string()), ("session", pa.string()), ("age_years", pa.float64()), ("blot", pa.int64())]
    + [(name, pa.float64()) for name in ("blot_radius_mm", "blot_contrast", "blot_x_mm", "blot_y_mm", "blot_z_mm")]
    + [(name, pa.float64()) for name in ("peak_score", "mean_score", "peak_in_blot")]
    + [(f"{name}_auroc", pa.float64()) for name in AREAS]
    + [("patches", pa.int64()), ("covered", pa.float64()), ("seconds", pa.float64())]
)


@dataclass(frozen=True)
class _Work:
    """What all parts of the stage need."""

    context: StageContext
    system: ScoredSystem
    source: PatchSource
    split: Mapping[str, Any]

    @property
    def config(self) -> Config:
        return self.context.config

    @property
    def columns(self) -> dict[str, str]:
        """Value attribute to column."""
        return {a.name: a.column or "" for a in self.config.value_attributes}

    @property
    def max_background(self) -> float:
        return most_background(self.config)

    def scans_of(self, split: str) -> list[int]:
        """Rows of the cohort whose subjects are of this split and whose age is known."""
        members, table = set(self.split[split]), self.source.cohort.subjects
        pairs = zip(table["subject"].to_pylist(), table["age_years"].to_pylist(), strict=True)
        return [row for row, (subject, age) in enumerate(pairs) if subject in members and age is not None]


def run(context: StageContext) -> dict[str, float]:
    """Generate brains, measure their ventricles, and map test scans with and without a blot.

    Raises:
        DataError: the data are not those that were split, or a scan holds no patch.
    """
    config = context.config
    samples = open_prepared(config, context.inputs["prepare"])
    if not isinstance(samples.images, PatchSource):
        raise DataError(f"stage brains needs data.source brain, found {config.data.source}")
    system = ScoredSystem.load(projecting_with(config, config.brains.steps), context.inputs, context.device)
    work = _Work(context, system, samples.images, read_json(context.inputs["prepare"] / "split.json"))
    metrics = _generated(work) | _mapped(work)
    if config.brains.calibration_scans:
        metrics |= calibrate_scans(context, system, samples.images, work.scans_of("unused"))
    if config.brains.cases is not None:
        model = scan_model(system.config, system, system.threshold)
        map_cases(
            config.brains.cases, model, context.folder, progress=lambda done, of: context.recorder.progress(done, of, "patch")
        )  # fmt: skip
    return metrics


# ---- generated brains --------------------------------------------------------------------------------------------------


def _generated(work: _Work) -> dict[str, float]:
    """Figure 12: the same identities at several ages, and the volume of their ventricles beside that of the scans."""
    config, settings, cohort = work.config, work.config.brains, work.source.cohort
    by_column = {column: name for name, column in work.columns.items()}
    region = ventricle_region(cohort)
    train = work.scans_of("train")
    levels = fluid_levels(work.source.contrast.parameters[torch.tensor(train)])
    rows = [] if region is None else _scan_ventricles(work, region, levels)
    metrics: dict[str, float] = {}
    if AGE_COLUMN in by_column and (POSITION_COLUMN in by_column or work.source.whole):
        generator, controllers = work.system.projector.generator, work.system.projector.controllers
        most = work.max_background
        centres = grid_centres(work.source, cohort.atlas_mask, stride=settings.stride, max_background=most)
        if not len(centres):
            raise DataError(f"{cohort.folder}: no patch of the atlas has at most {work.max_background:.0%} background")
        grid = _at(work.source, centres)
        latents = draw_latents(settings.identities, generator, seeded(config.seed, "brains"))
        volumes = np.empty((settings.identities, len(settings.ages)))
        shown: list[list[NDArray[Any]]] = []
        for i, z in enumerate(latents):
            pictures = []
            for j, age in enumerate(settings.ages):
                columns = grid.values() | {AGE_COLUMN: torch.full((len(centres), 1), age)}
                values = {name: columns[column] for name, column in work.columns.items()}
                made = generate_brain(
                    generator,
                    controllers,
                    z,
                    values,
                    centres,
                    cohort.shape,
                    truncation=settings.truncation,
                    batch_size=settings.batch_size,
                )
                mask = (cohort.atlas_mask > 0) & made.covered.numpy()
                brain = np.where(mask, made.result().numpy().clip(-1, 1), 0)
                if region is not None:
                    z_scores = brain * INTENSITY_RANGE_SD
                    volumes[i, j] = ventricle_volume_ml(z_scores, region & mask, levels, cohort.spacing_mm)
                    rows.append(_ventricles("generated", str(i + 1), age, volumes[i, j]))
                if i < SHOWN_IDENTITIES:
                    name = f"identity-{i + 1}_age-{age:g}.nii.gz"
                    write_nifti(work.context.folder / "generated" / name, brain * INTENSITY_RANGE_SD, cohort.affine)
                    pictures.append(_middle_panel(work, brain, mask, region))
                done = i * len(settings.ages) + j + 1
                work.context.recorder.progress(done, settings.identities * len(settings.ages), "generated brain")
            shown += [pictures] if pictures else []
        np.save(work.context.folder / "generated.npy", np.array(shown)[:, :, None])
        if region is not None:
            metrics = _change(volumes, config)
    pq.write_table(pa.Table.from_pylist(rows, schema=VENTRICLE_SCHEMA), work.context.folder / "ventricles.parquet")
    return metrics


def _scan_ventricles(work: _Work, region: NDArray[np.bool_], levels: tuple[float, float]) -> list[dict[str, Any]]:
    """The same measurement on the scans of the test subjects."""
    cohort, rows = work.source.cohort, []
    for scan in work.scans_of("test"):
        about = cohort.subjects.slice(scan, 1).to_pylist()[0]
        inside = region & (np.asarray(cohort.masks[scan]) > 0)
        z = unit_volume(work.source, scan) * INTENSITY_RANGE_SD
        volume = ventricle_volume_ml(z, inside, levels, cohort.spacing_mm)
        rows.append(_ventricles("scan", f"{about['subject']} {about['session']}".strip(), about["age_years"], volume))
    return rows


def _ventricles(kind: str, identity: str, age: float, volume: float) -> dict[str, Any]:
    return {"kind": kind, "identity": identity, "age_years": age, "volume_ml": float(volume)}


def _change(volumes: NDArray[np.float64], config: Config) -> dict[str, float]:
    """Mean growth of the ventricles from the youngest age to the oldest, with a 95 % interval over identities, paired."""
    ages = config.brains.ages
    growth = volumes[:, int(np.argmax(ages))] - volumes[:, int(np.argmin(ages))]
    counts = resample_counts(len(growth), config.scoring.bootstrap_samples, config.seed)
    low, high = np.percentile(counts @ growth / len(growth), [2.5, 97.5])
    found = {"ventricle_growth_ml": growth.mean(), "ventricle_growth_ml_low": low, "ventricle_growth_ml_high": high}
    return {name: float(value) for name, value in found.items()}


def _middle_panel(
    work: _Work, brain: NDArray[np.floating], mask: NDArray[np.bool_], region: NDArray[np.bool_] | None
) -> NDArray[Any]:
    """Axial and coronal slice through the ventricles."""
    atlas_mask = work.source.cohort.atlas_mask
    where = atlas_mask if region is None else region
    centre = np.argwhere(where != 0).mean(0).round().astype(int).tolist()
    axes = (slices.AXIAL, slices.CORONAL)
    return slices.panel(slices.to_grey(brain, mask), centre, slices.brain_box(atlas_mask), axes)


def _at(source: PatchSource, centres: NDArray[np.int64]) -> PatchSource:
    """Patches at these places, for their values; whose they are does not matter."""
    return replace(source, scan=np.zeros(len(centres), np.int32), center=centres.astype(np.int16))


# ---- maps of test scans --------------------------------------------------------------------------------------------------


def _mapped(work: _Work) -> dict[str, float]:
    """Anomaly maps of some test scans, each as it is and with the blot of (seed, scan)."""
    config, cohort, folder = work.config, work.source.cohort, work.context.folder
    (folder / "maps").mkdir(exist_ok=True)
    chosen = spread_by_age(work.source, work.scans_of("test"), config.brains.scans)
    about_maps: list[dict[str, Any]] = []
    tables: list[pa.Table] = []
    panels: list[list[NDArray[np.generic]]] = []
    for number, scan in enumerate(chosen, start=1):
        image = unit_volume(work.source, scan)
        mask = np.asarray(cohort.masks[scan]) > 0
        blot = draw_blot(
            torch.from_numpy(image)[None], config.seed, scan, standard_blots(config.data), torch.from_numpy(mask)
        )  # fmt: skip
        grid = on_grid(work.source, scan, stride=config.brains.stride, max_background=work.max_background)
        if not len(grid):
            raise DataError(f"{cohort.folder}: scan {scan} holds no patch with at most {work.max_background:.0%} background")
        centre = np.clip(np.round(blot.center_px), 0, np.array(cohort.shape) - 1).astype(int).tolist()
        inside = blot.mask.numpy() > 0.5
        changed = with_image(grid, scan, blot.image[0].numpy())
        pair, seconds = _finished_or_made(work, grid, changed, number, len(chosen))
        for drawn, maps in enumerate(pair):
            name = f"scan-{number}" + ("_blot" if drawn else "")
            volumes = _volumes(maps)
            for kind, volume in volumes.items():
                write_nifti(folder / "maps" / f"{name}_{kind}.nii.gz", volume, cohort.affine)
            person = cohort.subjects.slice(scan, 1).to_pylist()[0]
            row = {"name": name, "blot": drawn} | {key: person[key] for key in ("subject", "session", "age_years")}
            place = cohort.world(np.array(blot.center_px))
            if drawn:
                row |= {"blot_radius_mm": blot.radius_mm, "blot_contrast": blot.contrast}
                row |= {f"blot_{axis}_mm": float(place[i]) for i, axis in enumerate("xyz")}
            else:
                row["seconds"] = seconds
            about_maps.append(row | _measured(maps, volumes, inside if drawn else None, mask))
            threshold = maps.anomaly_threshold(work.system.threshold)
            found = regions(maps.anomaly, threshold, cohort.spacing_mm, cohort.affine)
            tables.append(found.add_column(0, "name", pa.array([name] * len(found), pa.string())))
            panels.append(_panels(maps, inside if drawn else np.zeros_like(inside), centre, cohort.atlas_mask))
    pq.write_table(pa.Table.from_pylist(about_maps, schema=MAP_SCHEMA), folder / "maps.parquet")
    empty = REGION_SCHEMA.empty_table().add_column(0, "name", pa.array([], pa.string()))
    pq.write_table(pa.concat_tables([empty, *tables]), folder / "regions.parquet")
    np.save(folder / "maps.npy", np.array(panels, np.uint8)[:, :, None])
    described = {"panels": PANELS, "threshold": threshold, "excess_shown": EXCESS_SHOWN, "cohort": cohort.name}
    write_json(folder / "slices.json", described)
    for path in (folder / "maps").glob("*.npz"):
        path.unlink()
    return _headline(about_maps)


def _finished_or_made(
    work: _Work, source: PatchSource, changed: PatchSource, number: int, count: int
) -> tuple[list[ScanMaps], float]:
    """The maps of a scan and of its changed form, of an earlier attempt or new ones, kept until the stage ends; and seconds."""
    path = work.context.folder / "maps" / f"scan-{number}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            names = {form: [f.name for f in fields(ScanMaps) if f"{form}/{f.name}" in kept] for form in (0, 1)}
            pair = [{name: kept[f"{form}/{name}"] for name in names[form]} for form in (0, 1)]
            numbers = [{name: a[name].item() for name in ("patches", "lowest_p", "unusual")} for a in pair]
            return [ScanMaps(**a | n) for a, n in zip(pair, numbers, strict=True)], float(kept["seconds"])
    began = time.perf_counter()
    found = scan_maps(
        source,
        work.columns,
        work.system,
        batch_size=work.config.brains.batch_size,
        changed=[changed],
        progress=lambda done, total: work.context.recorder.progress((number - 1) * total + done, count * total, "patch"),
    )
    seconds = time.perf_counter() - began
    named = ((f"{form}/{name}", array) for form, maps in enumerate(found) for name, array in vars(maps).items())
    arrays = {name: array for name, array in named if array is not None}
    with written_aside(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **arrays, seconds=seconds)
    return found, seconds


def _volumes(maps: ScanMaps) -> dict[str, NDArray[np.floating]]:
    """Name to volume, as they are written; intensities in standard deviations."""
    volumes: dict[str, NDArray[np.floating]] = {
        "scan": maps.image * INTENSITY_RANGE_SD,
        "reconstruction": maps.reconstruction * INTENSITY_RANGE_SD,
        "anomaly": maps.anomaly,
        "score": maps.score,
        "residual": maps.residual * INTENSITY_RANGE_SD,
    }
    volumes |= {"excess": maps.excess} if maps.excess.any() else {}
    return volumes | ({} if maps.gradient is None else {"gradient": maps.gradient})


def _measured(
    maps: ScanMaps, volumes: Mapping[str, NDArray[np.floating]], blot: NDArray[np.bool_] | None, mask: NDArray[np.bool_]
) -> dict[str, float | int]:
    """Numbers of one map; against the blot where there is one."""
    covered = maps.covered
    anomaly = maps.anomaly
    peak = np.unravel_index(int(np.argmax(np.where(covered, anomaly, -np.inf))), covered.shape)
    row: dict[str, float | int] = {
        "peak_score": float(anomaly[peak]),
        "mean_score": float(anomaly[covered].mean()),
        "patches": maps.patches,
        "covered": float(covered.sum() / mask.sum()),
    }
    if blot is None:
        return row
    row["peak_in_blot"] = float(blot[peak])
    label = blot[covered].astype(np.int64)
    for name in AREAS:
        if name in volumes and 0 < label.sum() < len(label):
            area = auroc(label, volumes[name][covered].astype(np.float64), np.ones((1, len(label))))[0]
            row[f"{name}_auroc"] = float(area)
    return row


def _panels(
    maps: ScanMaps, blot: NDArray[np.bool_], centre: list[int], atlas_mask: NDArray[np.uint8]
) -> list[NDArray[np.generic]]:
    """The five pictures of one map, in the order of `PANELS`: three slices each through the blot's place."""
    box, brain = slices.brain_box(atlas_mask), maps.image != 0
    greys = (
        slices.to_grey(maps.image, brain),
        slices.to_grey(maps.reconstruction, maps.covered),
        slices.to_grey(maps.anomaly, maps.covered, 0.0, 1.0),
        slices.to_grey(maps.excess, maps.covered, 0.0, EXCESS_SHOWN),
        (blot * 255).astype(np.uint8),
    )
    return [slices.panel(grey, centre, box) for grey in greys]


def _headline(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the maps, for the manifest."""
    found: dict[str, float] = {"maps": float(len(rows))}
    areas = (f"{name}_auroc" for name in AREAS)
    for name in (*areas, "peak_in_blot", "covered", "patches", "seconds"):
        values = [row[name] for row in rows if name in row]
        if values:
            found[f"map_{name}"] = float(np.mean(values))
    return found


def write_nifti(path: Path, volume: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    """Write a volume (Z, Y, X) as NIfTI, float32 or its own whole numbers.

    Args:
        path: `.nii.gz`; its folder is made.
        volume: (Z, Y, X).
        affine: (4, 4), index (z, y, x, 1) to RAS millimetres.
    """
    import nibabel as nib

    path.parent.mkdir(parents=True, exist_ok=True)
    values = volume.astype(np.float32).round(4) if np.issubdtype(volume.dtype, np.floating) else volume
    image = nib.Nifti1Image(np.ascontiguousarray(values.transpose(2, 1, 0)), affine[:, [2, 1, 0, 3]])
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
