"""Whole scans on a small cohort: patches fused, only what changed rated again, thresholds from healthy validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from normscape.baselines import Scores
from normscape.datasets.batches import ImageBatch
from normscape.datasets.patches import PatchSource
from normscape.evaluation import scans
from normscape.evaluation.evaluating import evaluate
from normscape.evaluation.locked import readings
from normscape.evaluation.scan_measures import scan_rows
from normscape.evaluation.scans import RATES_SCHEMA, SCANS_SCHEMA, scan_tables, spread_scans
from normscape.evaluation.splits import HEALTHY
from normscape.scoring.maps import on_grid
from tests.evaluation.toys import detector, family

if TYPE_CHECKING:
    from tests.evaluation.conftest import Prepared

SCANS = {
    "families": [family("bright", value=1.0, side=4), family("nowhere", empty_every=1)],
    "training_families": [],
    "scans": 2,
    "scan_stride": 4,
    "validation_images": 8,
    "test_images": 8,
}


class Brightness:
    """Brighter is more abnormal; counts the patches that it was shown."""

    supervision = "none"

    def __init__(self) -> None:
        self.patches = 0

    def decision_function(self, batch: ImageBatch) -> Scores:
        return batch.images.flatten(1).mean(1).double().numpy()

    def anomaly_map(self, batch: ImageBatch) -> torch.Tensor | None:
        self.patches += len(batch)
        return (batch.images + 1) * batch.masks


class NoMap(Brightness):
    """Cannot tell where."""

    def anomaly_map(self, batch: ImageBatch) -> None:
        return None


def test_a_bright_block_is_found(brains: Prepared) -> None:
    """Every form has a row; the bright voxels rank first, and the scan with them above the scan without."""
    bench = brains.evaluating(**SCANS).bench
    found = scan_tables(bench, Brightness(), "brightness, seed 0", lambda *_: None)
    assert found.scans.schema == SCANS_SCHEMA
    assert found.rates.schema == RATES_SCHEMA
    rows = found.scans.to_pylist()
    forms = [(row["role"], row["family"]) for row in rows]
    assert forms == [("healthy", "")] * len(bench.roles.healthy) + [("test", ""), ("test", "bright")] * 2
    plain, bright = rows[-2], rows[-1]
    assert bright["subject"] == plain["subject"]
    assert bright["voxel_auprc"] > 0.9
    assert bright["score"] > plain["score"]
    assert bright["size"] > 0
    assert plain["voxel_auprc"] is None
    assert plain["seconds"] > 0
    assert bright["seconds"] is None
    assert found.about["scans_left_out"] == {"nowhere": 2}
    assert found.about["scan_map"] == "anomaly_map"
    for row in found.rates.to_pylist():
        assert row["threshold"] == found.about["voxel_thresholds"][f"{row['rate']:g}"]
        assert (row["dice"] is None) == (row["family"] == "")
    assert [reading.images for reading in readings(bench.experiment.folder)] == [2]


def test_only_patches_that_changed_are_rated_again(brains: Prepared) -> None:
    """And the map is the one that rating all of them gives."""
    bench = brains.evaluating(**SCANS | {"families": [family("bright", value=1.0, side=4)]}).bench
    one = Brightness()
    scan_tables(bench, one, "a", lambda *_: None)
    healthy, test = bench.validation(HEALTHY), bench.locked("a test")
    everything = 0
    for cases, forms in ((healthy, 1), (test, 2)):
        source = cases.images.samples.images
        for scan in spread_scans(cases, 2):
            everything += forms * len(on_grid(source, scan, stride=4, max_background=0.5))
    assert one.patches < everything
    form = list(scans._forms(bench.config, test, spread_scans(test, 1)[0], None, bench.families))
    rater = scans._Rater(bench, Brightness())
    again, anew = rater.rate(form[1], rater.rate(form[0])), rater.rate(form[1])
    np.testing.assert_array_equal(again.volume, anew.volume)


def test_thresholds_keep_their_promise_on_healthy_scans(brains: Prepared) -> None:
    bench = brains.evaluating(**SCANS).bench
    found = scan_tables(bench, Brightness(), "a", lambda *_: None)
    healthy = bench.validation(HEALTHY)
    rater = scans._Rater(bench, Brightness())
    values = []
    for scan in spread_scans(healthy, 2):
        rated = rater.rate(next(scans._forms(bench.config, healthy, scan, None, {})))
        values.append(rated.volume[rated.brain])
    for rate, threshold in found.about["voxel_thresholds"].items():
        assert (np.concatenate(values) > threshold).mean() <= float(rate)


def test_a_detector_without_a_map_is_fused_from_its_scores(brains: Prepared) -> None:
    found = scan_tables(brains.evaluating(**SCANS).bench, NoMap(), "a", lambda *_: None)
    assert found.about["scan_map"] == "patch scores"
    assert found.scans.to_pylist()[-1]["voxel_auprc"] > 0


def test_scans_are_spread_over_age_one_a_subject(brains: Prepared) -> None:
    test = brains.bench.locked("a test")
    source = test.images.samples.images
    assert isinstance(source, PatchSource)
    ages, names = (source.cohort.subjects[column].to_pylist() for column in ("age_years", "subject"))
    chosen = spread_scans(test, 10)
    assert len(chosen) == len({names[scan] for scan in chosen}) == 2
    assert ages[chosen[0]] <= ages[chosen[1]]
    assert len(spread_scans(test, 1)) == 1


def test_an_evaluation_with_scans(brains: Prepared) -> None:
    """Measures of whole scans stand beside those of patches."""
    prepared = brains.evaluating(**SCANS | {"detectors": [detector("near"), detector("blind", "Blind")]})
    results = evaluate(prepared.config, prepared.runs)
    rows = [r for r in pq.read_table(results.folder / "metrics.parquet").to_pylist() if r["role"] == "scan"]
    found = {(r["detector"], r["family"], r["metric"], r["rate"]): r for r in rows}
    for name in ("near", "blind"):
        assert 0 <= found[name, "bright", "scan_auroc", None]["value"] <= 1
        assert found[name, "bright", "voxel_auprc", None]["anomalies"] == 2
        assert found[name, "", "seconds", None]["value"] > 0
        assert 0 <= found[name, "bright", "dice", 0.1]["value"] <= found[name, "bright", "ceiling_dice", None]["value"]
        assert found[name, "", "false_positives", 0.3]["value"] >= 0
    costs = {r["detector"]: r for r in pq.read_table(results.folder / "costs.parquet").to_pylist()}
    assert (costs["near"]["scan_map"], costs["blind"]["scan_map"]) == ("anomaly_map", "patch scores")
    assert costs["near"]["scan_seconds"] > 0


def test_measures_of_scans_are_means_over_scans_and_seeds() -> None:
    """Golden: two seeds, three scans of three subjects; the third has no anomaly drawn."""

    def tables(shift: float) -> tuple[pa.Table, pa.Table]:
        forms, rates = [], []
        for scan in range(3):
            for name in ("", "bright") if scan < 2 else ("",):
                who = {"role": "test", "family": name, "subject": f"p-{scan}", "scan": scan}
                known = {"voxel_auprc": 0.5 + 0.1 * scan + shift} if name else {}
                forms.append(who | {"score": scan + 10.0 * bool(name), "seconds": 2.0 if not name else None} | known)
                dice = {"dice": 0.2 * (scan + 1), "lesions": 2.0, "found": float(scan)} if name else {}
                rates.append(who | {"rate": 0.1, "threshold": 1.0, "false_positives": float(scan), "flagged": 0.1} | dice)
        return pa.Table.from_pylist(forms, schema=SCANS_SCHEMA), pa.Table.from_pylist(rates, schema=RATES_SCHEMA)

    pairs = [tables(0.0), tables(0.2)]
    rows = scan_rows(
        {"a": [pair[0] for pair in pairs]}, {"a": [pair[1] for pair in pairs]}, {"a": "none"}, [], resamples=50, seed=0
    )
    found = {(r["family"], r["metric"]): r for r in rows}
    assert found["bright", "voxel_auprc"]["value"] == pytest.approx(0.65)
    assert found["bright", "voxel_auprc"]["spread"] == pytest.approx(np.std([0.55, 0.75], ddof=1))
    assert found["bright", "dice"]["value"] == pytest.approx(0.3)
    assert found["bright", "lesion_sensitivity"]["value"] == pytest.approx(1 / 4)
    assert found["", "false_positives"]["value"] == pytest.approx(1.0)
    assert found["bright", "scan_auroc"]["value"] == 1.0
    assert found["bright", "scan_prevalence"]["value"] == pytest.approx(2 / 5)
    assert [found["bright", "dice"][name] for name in ("normals", "anomalies", "seeds")] == [3, 2, 2]
    assert found["all families", "dice"]["value"] == pytest.approx(0.3)
