"""Whole healthy scans of subjects that no network has seen: what a new scan's p-value is measured by. Part of stage `brains`.

Writes `scan_conformal.safetensors` + `.json` (`normscape.scoring.conformal`), two scores a scan, one scan a subject:

- `place`: the highest value of its anomaly map;
- `scan`: the mean of its anomaly map over the voxels that lie in a patch;

and `healthy_scans.parquet`: subject, session, age_years, place, scan. A scan that was mapped before the stage was cut off is not
mapped again. Scores are compared as they are: that they depend on age cannot be learned from so few scans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from normscape.config import Config
from normscape.datasets.patches import PatchSource
from normscape.errors import DataError
from normscape.scoring.conformal import Calibration, Conformal, limit_of
from normscape.scoring.maps import UNUSUAL, PatchRater, ScanMaps, on_grid, scan_maps
from normscape.stages.core import StageContext
from normscape.stages.files import discard, read_json, write_json
from normscape.stages.system_files import SCANS_NAME

PLACE, SCAN = "place", "scan"
HEALTHY_SCHEMA = pa.schema(
    [("subject", pa.string()), ("session", pa.string())] + [(name, pa.float64()) for name in ("age_years", PLACE, SCAN)]
)


@dataclass(frozen=True)
class PValue:
    """How often a healthy subject looks as abnormal in one respect, and the sentence that says it."""

    about: str
    p: float
    subjects: int
    sentence: str


def scan_scores(maps: ScanMaps) -> dict[str, float]:
    """What a whole scan is compared by."""
    anomaly = maps.anomaly
    return {PLACE: float(anomaly.max()), SCAN: float(anomaly[maps.covered].mean()) if maps.covered.any() else 0.0}


def grid_settings(config: Config) -> dict[str, float | int]:
    """What has to be the same for two scans to be compared."""
    steps = config.projection.steps if config.brains.steps is None else config.brains.steps
    if config.whole_scans:
        return {"steps": steps}
    return {"stride": config.brains.stride, "steps": steps, "max_background": most_background(config)}


def most_background(config: Config) -> float:
    """Largest share of a patch outside the brain."""
    own = config.brains.max_background
    return config.data.max_background if own is None else own


def spread_by_age(source: PatchSource, scans: Sequence[int], count: int) -> list[int]:
    """At most this many of some scans of the cohort, evenly spread over age, young and old among them."""
    ages = source.cohort.subjects["age_years"].to_pylist()
    ordered = sorted(scans, key=lambda scan: (ages[scan], scan))
    count = min(count, len(ordered))
    return [ordered[int(place)] for place in (np.arange(count) + 0.5) / max(count, 1) * len(ordered)]


def calibrate_scans(context: StageContext, rater: PatchRater, source: PatchSource, scans: Sequence[int]) -> dict[str, float]:
    """Map healthy scans, and keep their scores.

    Args:
        context: of stage `brains`.
        rater: the scored system.
        source: any patches of the cohort.
        scans: rows of the cohort to choose from, all of subjects in neither split.

    Raises:
        DataError: there is no such scan, or one holds no patch.
    """
    config, subjects = context.config, source.cohort.subjects
    names = subjects["subject"].to_pylist()
    first = list({names[scan]: scan for scan in reversed(scans)}.values())  # subjects are exchangeable, their scans are not
    if not first:
        raise DataError(
            "brains.calibration_scans: healthy scans asked for, and the data has no subject left for them; "
            "lower data.train_subjects or data.test_subjects"
        )
    chosen = spread_by_age(source, first, config.brains.calibration_scans)
    aside = context.folder / "calibration"
    aside.mkdir(exist_ok=True)
    rows = []
    for number, scan in enumerate(chosen):

        def tell(done: int, total: int, number: int = number) -> None:
            context.recorder.progress(number * total + done, len(chosen) * total, "patch")

        path = aside / f"scan-{scan}.json"
        scores: Mapping[str, Any] = read_json(path)
        if not scores:
            scores = scan_scores(_mapped(config, rater, source, scan, tell))
            write_json(path, dict(scores))
        person = subjects.slice(scan, 1).to_pylist()[0]
        rows.append({name: person[name] for name in ("subject", "session", "age_years")} | dict(scores))
    pq.write_table(pa.Table.from_pylist(rows, schema=HEALTHY_SCHEMA), context.folder / "healthy_scans.parquet")
    people = np.array([row["subject"] for row in rows])
    made = {name: Conformal.fit(np.array([row[name] for row in rows]), people) for name in (PLACE, SCAN)}
    Calibration(made, grid_settings(config)).save(context.folder / SCANS_NAME)
    discard(aside)
    return {"calibration_scans": float(len(rows))}


def _mapped(config: Config, rater: PatchRater, source: PatchSource, scan: int, tell: Callable[[int, int], None]) -> ScanMaps:
    grid = on_grid(source, scan, stride=config.brains.stride, max_background=most_background(config))
    if not len(grid):
        raise DataError(
            f"{source.cohort.folder}: scan {scan} holds no patch with at most {most_background(config):.0%} background"
        )
    columns = {a.name: a.column or "" for a in config.value_attributes}
    [maps] = scan_maps(grid, columns, rater, batch_size=config.brains.batch_size, progress=tell)
    return maps


def p_values(maps: ScanMaps, config: Config, healthy: Calibration | None, patch_subjects: int) -> list[PValue]:
    """What can be said of a new scan.

    Args:
        maps: of the scan.
        config: under which it was mapped.
        healthy: whole healthy scans, where there are any.
        patch_subjects: healthy subjects behind the p-values of single patches; 0 where there are none.
    """
    if healthy is not None and dict(healthy.settings) == grid_settings(config):
        scores = scan_scores(maps)
        subjects = healthy.scores[PLACE].subjects
        place, whole = (float(healthy.scores[name].p_value(np.array([scores[name]]))[0]) for name in (PLACE, SCAN))
        against = f"against {subjects} healthy {'scan' if subjects == 1 else 'scans'}; {limit_of(subjects)}"
        return [
            PValue("most abnormal place", place, subjects, f"p = {place:.2g}: the highest value of the map, {against}."),
            PValue("scan as a whole", whole, subjects, f"p = {whole:.2g}: the mean of the map, {against}."),
        ]
    if not patch_subjects or not np.isfinite(maps.lowest_p):
        return []
    if config.whole_scans:
        sentence = (
            f"p = {maps.lowest_p:.2g}: the score of the scan, by its rank among the images of {patch_subjects} healthy "
            f"{'subject' if patch_subjects == 1 else 'subjects'} and its own; {limit_of(patch_subjects)}."
        )
        return [PValue("scan as a whole", maps.lowest_p, patch_subjects, sentence)]
    other = " Healthy scans were mapped with another stride or other steps, and say nothing here." if healthy else ""
    sentence = (
        f"p = {maps.lowest_p:.2g}: the most abnormal patch, by its rank among all patches of this scan and of {patch_subjects} "
        f"healthy {'subject' if patch_subjects == 1 else 'subjects'}. The lowest of {maps.patches} patches is often this low in "
        f"a healthy scan: it is no p-value of the scan. {maps.unusual:.1%} of the patches have a p of at most {UNUSUAL:.0%}, as "
        f"{UNUSUAL:.0%} of a healthy scan's have on average.{other}"
    )
    return [PValue("most abnormal patch, by itself", maps.lowest_p, patch_subjects, sentence)]
