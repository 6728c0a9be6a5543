"""The tables of an evaluation, from its finished units.

They lie in `<run>/evaluation/results-<key8>/`: `metrics.parquet`, `strata.parquet`, `roc.parquet` (see `measures`),
`paired.parquet` (see `paired`), `costs.parquet`, a row a detector, `failures.parquet`, a row a unit that failed, and
`evaluation.json`: what was compared, on whose images, by which command.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from normscape.configio import digest, dump_yaml
from normscape.errors import DataError, UserError
from normscape.evaluation.experiment import Experiment
from normscape.evaluation.locked import LOCKED, readings
from normscape.evaluation.measures import METRICS_SCHEMA, ROC_SCHEMA, STRATA_SCHEMA, areas, metric_rows, roc_rows, strata_rows
from normscape.evaluation.paired import PAIRED_SCHEMA, best_baselines, paired_rows
from normscape.evaluation.scan_measures import scan_rows
from normscape.evaluation.scorebook import RoleScores
from normscape.evaluation.splits import SYNTHETIC
from normscape.evaluation.units import RATES_NAME, SCANS_NAME, SCORES_NAME, Unit, finished_unit, read_table
from normscape.stages.files import discard, flush_folder, write_json, write_text
from normscape.stages.provenance import code_version

ABOUT_NAME = "evaluation.json"
COSTS_SCHEMA = pa.schema(
    [("detector", pa.string()), ("supervision", pa.string()), ("seeds", pa.int64())]
    + [(name, pa.float64()) for name in ("fit_seconds", "image_ms", "peak_megabytes", "scan_seconds")]
    + [("scan_map", pa.string()), ("device", pa.string()), ("threads", pa.int64())]
)
"""Means over seeds; the peak is the highest: of the whole process, its data too, on a CPU."""
FAILURES_SCHEMA = pa.schema([("detector", pa.string()), ("seed", pa.int64()), ("reason", pa.string())])
_STREAM = 3
"""Keeps the seed of the resampling apart from others."""

Page = Callable[[Path], object]
Done = tuple[Unit, Mapping[str, Any]]
"""A finished unit and its `unit.json`."""


@dataclass(frozen=True)
class Results:
    """A finished evaluation."""

    folder: Path
    """Of the tables and the page."""
    about: Mapping[str, Any]
    """Content of `evaluation.json`."""
    failures: tuple[tuple[Unit, str], ...]
    """Units that failed, with their reasons."""


def assemble(
    experiment: Experiment, units: Sequence[Unit], failures: Mapping[str, str], *, command: str, page: Page | None = None
) -> Results:
    """Measure everything, and write the tables and the page; the folder appears whole.

    Args:
        experiment: what was evaluated.
        units: all of its units.
        failures: name of a unit (`Unit.name`) to the reason of its failure.
        command: that makes these numbers again.
        page: writes the page into a folder of tables.

    Raises:
        UserError: no unit has finished.
        DataError: units do not fit together.
    """
    done = [(unit, about) for unit in units if (about := finished_unit(experiment, unit)) is not None]
    lost = tuple((unit, failures[unit.name]) for unit in units if unit.name in failures)
    if not done:
        reasons = "; ".join(f"{unit.name}: {reason}" for unit, reason in lost)
        raise UserError(f"no detector could be evaluated: {reasons or 'there are none'}")
    final = experiment.folder / f"results-{_key(experiment, units)[:8]}"
    partial = final.with_name(final.name + ".partial")
    discard(partial)
    partial.mkdir(parents=True)
    about = _write(experiment, done, lost, partial, command)
    if page is not None:
        page(partial)
    flush_folder(partial)
    discard(final)
    os.replace(partial, final)
    return Results(final, about, lost)


def _key(experiment: Experiment, units: Sequence[Unit]) -> str:
    settings = experiment.config.evaluation
    return digest([[unit.key for unit in units], settings.bootstrap_samples, settings.reference, list(settings.own)])


def _write(
    experiment: Experiment, done: Sequence[Done], lost: Sequence[tuple[Unit, str]], folder: Path, command: str
) -> dict[str, Any]:
    """Write the tables; what `evaluation.json` says."""
    config = experiment.config
    settings, learned = config.evaluation, config.evaluation.training_families
    groups: dict[str, list[Done]] = {}
    for unit, entry in done:
        groups.setdefault(unit.detector.name, []).append((unit, entry))
    supervision = {name: str(group[0][1]["supervision"]) for name, group in groups.items()}
    scores = {name: [_needed(experiment, unit, SCORES_NAME) for unit, _ in group] for name, group in groups.items()}
    seed = int(np.random.SeedSequence([config.seed, _STREAM]).generate_state(1)[0])
    roles = {
        role: RoleScores(
            {name: [table.filter(pc.equal(table["role"], role)) for table in tables] for name, tables in scores.items()},
            resamples=settings.bootstrap_samples,
            seed=seed,
        )
        for role in (SYNTHETIC, LOCKED)
    }
    area = {role: areas(found, learned) for role, found in roles.items()}
    thresholds = {
        name: {rate: [entry["thresholds"][f"{rate:g}"] for _, entry in group] for rate in settings.false_positive_rates}
        for name, group in groups.items()
    }
    if not roles[LOCKED].families:
        raise DataError("no family found a place for an anomaly in any image of the locked test; nothing can be measured")
    rows = [
        row for role, found in roles.items() for row in metric_rows(role, found, area[role], supervision, thresholds, learned)
    ]
    scanned = [name for name, group in groups.items() if all("scan_map" in entry for _, entry in group)]
    if scanned:
        scans, rates = (
            {name: [_needed(experiment, unit, file) for unit, _ in groups[name]] for name in scanned}
            for file in (SCANS_NAME, RATES_NAME)
        )
        rows += scan_rows(scans, rates, supervision, learned, resamples=settings.bootstrap_samples, seed=seed)
    reference = settings.reference or settings.detectors[0].name
    best = best_baselines(area[SYNTHETIC], supervision, settings.own)
    tables = {
        "metrics": (rows, METRICS_SCHEMA),
        "strata": (strata_rows(roles[LOCKED]), STRATA_SCHEMA),
        "roc": (roc_rows(roles[LOCKED]), ROC_SCHEMA),
        "paired": (paired_rows(area[LOCKED], reference, best), PAIRED_SCHEMA),
        "costs": ([_cost(experiment, name, group) for name, group in groups.items()], COSTS_SCHEMA),
        "failures": ([{"detector": u.detector.name, "seed": u.seed, "reason": r} for u, r in lost], FAILURES_SCHEMA),
    }
    for name, (found, schema) in tables.items():
        pq.write_table(pa.Table.from_pylist(found, schema=schema), folder / f"{name}.parquet")
    first = done[0][1]
    about = {
        "name": config.name,
        "source": config.data.source,
        "cohort": experiment.data_name,
        "command": command,
        "config_digest": experiment.digest,
        "code_versions": sorted({str(entry["code_version"]) for _, entry in done} | {code_version()}),
        "detectors": list(groups),
        "own": [name for name in settings.own if name in groups],
        "families": [entry.name for entry in settings.families],
        "training_families": list(learned),
        "seeds": list(settings.seeds),
        "reference": reference if reference in groups else None,
        "best_baselines": best,
        "false_positive_rates": list(settings.false_positive_rates),
        "subjects": first["subjects"],
        "left_out": first["left_out"],
        "promise_kept_by_enough_images": first["kept_by_enough_images"],
        "bootstrap_samples": settings.bootstrap_samples,
        "network_images": settings.network_images,
        "train_images": settings.train_images,
        "scans": settings.scans if scanned else 0,
        "readings": len(readings(experiment.folder)),
        "failed": [unit.name for unit, _ in lost],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / ABOUT_NAME, about)
    write_text(folder / "config.yaml", dump_yaml(config))
    return about


def _needed(experiment: Experiment, unit: Unit, name: str) -> pa.Table:
    table = read_table(experiment, unit, name)
    if table is None:
        raise UserError(f"{unit.folder(experiment)}: {name} is missing; remove the folder and evaluate again")
    return table


def _cost(experiment: Experiment, name: str, group: Sequence[Done]) -> dict[str, Any]:
    """A row of `costs.parquet`."""
    found = [entry for _, entry in group]
    seconds = []
    for unit, _ in group:
        table = read_table(experiment, unit, SCANS_NAME)
        seconds += [] if table is None else [value for value in table["seconds"].to_pylist() if value is not None]
    return {
        "detector": name,
        "supervision": found[0]["supervision"],
        "seeds": len(found),
        "fit_seconds": float(np.mean([entry["fit_seconds"] for entry in found])),
        "image_ms": 1000 * float(np.mean([entry["seconds_per_image"] for entry in found])),
        "peak_megabytes": max(entry["peak_bytes"] for entry in found) / 1e6,
        "scan_seconds": float(np.mean(seconds)) if seconds else None,
        "scan_map": found[0].get("scan_map"),
        "device": found[0]["device"],
        "threads": found[0]["threads"],
    }
