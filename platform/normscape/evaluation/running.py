"""Running a unit: fit, score validation, choose thresholds, and only then read the locked test."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from normscape.baselines import ImageDetector, Training, load_detector
from normscape.baselines.anomalies import TrainingAnomalies, scene_of
from normscape.benchmark.timing import peak_bytes, reset_peak, synchronize
from normscape.evaluation.cases import NORMAL, Cases, Drawn
from normscape.evaluation.experiment import Experiment, NotedFolders, Progress, Workbench, stages_of
from normscape.evaluation.failures import DetectorFailed, blamed, checked_scores
from normscape.evaluation.locked import Reading
from normscape.evaluation.scans import ScanTables, scan_tables
from normscape.evaluation.splits import HEALTHY, SYNTHETIC, Person
from normscape.evaluation.thresholds import enough, promised_thresholds
from normscape.evaluation.units import RATES_NAME, SCANS_NAME, SCORES_NAME, Unit, write_failure, write_unit
from normscape.stages.provenance import choose_device, code_version
from normscape.training.seeding import seeded

KEPT_NAME = "kept"
"""Folder of results that detectors share; it can be removed at any time."""
UnitProgress = Callable[[Unit, int, int, str], None]
"""Told of a unit: (unit, done, in all, kind of work)."""
_OWN_COLUMNS = {"contrast", "size", "label", "score"}
"""Columns of a table of scores that a known value of the same name would hide."""


@dataclass(frozen=True)
class UnitResult:
    """How a unit ended."""

    unit: Unit
    about: Mapping[str, Any] = field(default_factory=dict)
    """Content of `unit.json`; empty when it failed."""
    failure: str = ""
    """Why it failed; empty when it did not."""
    readings: tuple[Reading, ...] = ()
    """When it opened the locked test."""


def run_unit(bench: Workbench, unit: Unit, progress: Progress | None = None) -> UnitResult:
    """Run one unit and write its folder; a detector's failure is written down and returned.

    Args:
        bench: samples, roles and families.
        unit: which unit.
        progress: told how far it is.

    Raises:
        UserError: what is not the detector's fault: data, families, a full disk.
    """
    tell = progress or (lambda done, total, unit: None)
    heard: list[Reading] = []
    try:
        tables, about = _measured(bench, unit, tell, heard)
    except DetectorFailed as failed:
        cause = failed.__cause__ or failed
        write_failure(bench.experiment, unit, str(failed), "".join(traceback.format_exception(cause)))
        return UnitResult(unit, failure=str(failed), readings=tuple(heard))
    write_unit(bench.experiment, unit, tables, about)
    return UnitResult(unit, about, readings=tuple(heard))


def _measured(bench: Workbench, unit: Unit, tell: Progress, heard: list[Reading]) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Tables and description of a unit."""
    config, settings = bench.config, bench.config.evaluation
    fitted = fit_unit(bench, unit, tell)
    detector, folders = fitted.detector, fitted.folders
    device = choose_device(config.device)
    scorer = Scorer(bench, detector, unit, tell)
    scored = [scorer.table(bench.validation(HEALTHY))]
    normal = scored[0]["score"].to_numpy()
    thresholds = promised_thresholds(normal, settings.false_positive_rates)
    scored.append(scorer.table(bench.validation(SYNTHETIC)))
    scored.append(scorer.table(bench.locked(f"{unit.name}: patch scores", heard.append)))  # everything is chosen now
    tables = {SCORES_NAME: pa.concat_tables(scored)}
    scans: ScanTables | None = None
    if settings.scans and config.data.source == "brain":
        scans = scan_tables(bench, detector, unit.name, tell, heard.append)
        tables |= {SCANS_NAME: scans.scans, RATES_NAME: scans.rates}
    read = (folders.asked | set(stages_of(detector)) | {"prepare"}) & set(bench.experiment.keys)
    about = {
        "detector": unit.detector.name,
        "seed": unit.seed,
        "supervision": detector.supervision,
        "stages": {name: bench.experiment.keys[name] for name in sorted(read)},
        "thresholds": {f"{rate:g}": threshold for rate, threshold in thresholds.items()},
        "kept_by_enough_images": {f"{rate:g}": enough(len(normal), rate) for rate in settings.false_positive_rates},
        "fit_seconds": fitted.seconds,
        "seconds_per_image": scorer.seconds / scorer.images,
        "peak_bytes": peak_bytes(device),
        "left_out": scorer.left_out,
        "subjects": {table["role"][0].as_py(): len(table["subject"].unique()) for table in scored},
        "device": device.type,
        "threads": torch.get_num_threads(),
        "code_version": code_version(),
        "config_digest": bench.experiment.digest,
    }
    return tables, about | (scans.about if scans else {})


@dataclass(frozen=True)
class Fitted:
    """A detector that was fitted."""

    detector: ImageDetector
    folders: NotedFolders
    """Of the stages; knows which it was asked for."""
    seconds: float
    """That fitting took."""


def fit_unit(bench: Workbench, unit: Unit, tell: Progress) -> Fitted:
    """Fit a unit's detector to the training subjects.

    Raises:
        DetectorFailed: it raised.
    """
    config, settings = bench.config, bench.config.evaluation
    device = choose_device(config.device)
    detector = load_detector(unit.detector)
    folders = NotedFolders(bench.experiment.folders)
    healthy = bench.healthy_training()
    anomalous = TrainingAnomalies(config, bench.training_families, healthy, unit.seed)
    training = Training(
        config, healthy, anomalous, scene_of(config), settings.train_images, settings.network_images, unit.seed, device, folders,
        lambda done, total: tell(done, total, "training step"), bench.experiment.folder / KEPT_NAME,
    )  # fmt: skip
    reset_peak(device)
    began = time.perf_counter()
    with blamed("while it was fitted", bench.experiment.folder):
        torch.manual_seed(unit.seed)  # for layers that a network makes without a generator of its own
        detector.fit(training)
    synchronize(device)
    return Fitted(detector, folders, time.perf_counter() - began + saved_by(detector))


def saved_by(detector: ImageDetector) -> float:
    """Seconds that a fitted detector has saved so far by results that another one kept: what it costs counts them as spent."""
    return float(getattr(detector, "saved_seconds", 0.0))


class Scorer:
    """Scores cases with one detector, and adds up what that took."""

    def __init__(self, bench: Workbench, detector: ImageDetector, unit: Unit, tell: Progress) -> None:
        self.bench, self.detector, self.unit, self.tell = bench, detector, unit, tell
        self.seconds, self.images = 0.0, 0
        self.left_out: dict[str, dict[str, int]] = {}  # role -> family -> rows without a place for an anomaly

    def table(self, cases: Cases) -> pa.Table:
        """A row for every image of a role."""
        total, done = len(cases), 0
        families = (NORMAL, *cases.families)
        parts: dict[str, pa.Table] = {}
        # Each unit in another order: of units that run at once, as on Ray, hardly two project the same images at the same time,
        # and each finds kept what the other did.
        order = torch.randperm(len(families), generator=seeded(self.unit.seed, "families", self.unit.detector.name))
        for family in (families[i] for i in order.tolist()):
            drawn = cases.drawn(family)
            scores = []
            for batch in cases.batches(drawn, self.bench.config.evaluation.batch_size):
                began = time.perf_counter() + saved_by(self.detector)
                with blamed("while it scored images", self.bench.experiment.folder):
                    scores.append(checked_scores(self.detector.decision_function(batch), len(batch)))
                self.seconds += time.perf_counter() - began + saved_by(self.detector)
                self.images += len(batch)
                done += len(batch)
                self.tell(done, total, f"{cases.role} image")
            if drawn.left_out:
                self.left_out.setdefault(cases.role, {})[family] = drawn.left_out
            score = np.concatenate(scores) if scores else np.empty(0)
            parts[family] = score_table(self.unit, cases, family, drawn, score, self.bench.people)
        return pa.concat_tables([parts[family] for family in families])


def score_table(
    unit: Unit, cases: Cases, family: str, drawn: Drawn, score: NDArray[np.float64], people: Mapping[str, Person]
) -> pa.Table:
    """Rows of `scores.parquet` for one family of one role."""
    samples, count = cases.images.samples, len(drawn.rows)
    names = cases.images.subject[drawn.rows.numpy()].tolist()
    columns: dict[str, pa.Array] = {
        "detector": pa.array([unit.detector.name] * count, pa.string()),
        "seed": pa.array([unit.seed] * count, pa.int64()),
        "role": pa.array([cases.role] * count, pa.string()),
        "family": pa.array([family] * count, pa.string()),
        "sample_id": pa.array(samples.sample_id[drawn.rows].numpy(), pa.int64()),
        "subject": pa.array(names, pa.string()),
        "site": pa.array([people[name].site for name in names], pa.string()),
    }
    for name, values in samples.values.items():
        if name not in _OWN_COLUMNS:
            known = values[drawn.rows].double().numpy()
            flat = known.shape[1] == 1
            columns[name] = pa.array(known[:, 0], pa.float64()) if flat else pa.array(known.tolist(), pa.list_(pa.float64()))
    columns |= {
        "size": pa.array(drawn.size, pa.float64(), mask=np.isnan(drawn.size)),
        "contrast": pa.array(drawn.contrast, pa.float64(), mask=np.isnan(drawn.contrast)),
        "label": pa.array([int(family != NORMAL)] * count, pa.int64()),
        "score": pa.array(score, pa.float64()),
    }
    return pa.table(columns)


def run_here(experiment: Experiment, units: Sequence[Unit], progress: UnitProgress) -> Iterator[UnitResult]:
    """Run units one after the other in this process; see `run_unit`."""
    bench = Workbench(experiment)
    for unit in units:
        yield run_unit(bench, unit, partial(progress, unit))
