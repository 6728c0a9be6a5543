"""Measures against scikit-learn, intervals that resample subjects jointly over seeds, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from normscape.errors import DataError
from normscape.evaluation.measures import METRICS_SCHEMA, ROC_SCHEMA, STRATA_SCHEMA, areas, metric_rows, roc_rows, strata_rows
from normscape.evaluation.paired import PAIRED_SCHEMA, best_baselines, paired_rows
from normscape.evaluation.scorebook import ALL, NEW, Estimate, RoleScores
from normscape.scoring.metrics import auroc, bootstrap_by_subject

FAMILIES = ("dark", "grey")
PEOPLE = 10


def table(seed: int, strength: float, *, drop: int = 0, subject_noise: float = 0.0) -> pa.Table:
    """Ten subjects with 12 normal images each, and 8 with an anomaly of each family; scores are noise plus `strength`."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for person in range(PEOPLE):
        offset = subject_noise * random.normal()
        for family, count in (("", 12), *((name, 8) for name in FAMILIES)):
            for i in range(count):
                rows.append(
                    {
                        "family": family,
                        "sample_id": 100 * person + i,
                        "subject": f"p-{person}",
                        "site": "north" if person % 2 else "south",
                        "age_years": 20.0 + 5 * person,
                        "position_mm": [float(i), 0.0, -float(i)],
                        "size": None if not family else 1.0 + i,
                        "contrast": None if not family else 0.1 * (i + 1),
                        "label": int(family != ""),
                        "score": random.normal() + offset + strength * (family != "") * (1.5 if family == "dark" else 1.0),
                    }
                )
    return pa.Table.from_pylist(rows[: len(rows) - drop])


def book(tables: dict[str, Sequence[pa.Table]], resamples: int = 200) -> RoleScores:
    return RoleScores(tables, resamples=resamples, seed=0)


@pytest.fixture(scope="module")
def role() -> RoleScores:
    """A good detector with three seeds, a bad one with two, and the good one under another name."""
    good = [table(seed, 2.0) for seed in (1, 2, 3)]
    return book({"good": good, "bad": [table(seed, 0.3) for seed in (4, 5)], "twin": good})


def test_areas_are_means_over_seeds_of_scikit_learns(role: RoleScores) -> None:
    found = areas(role, ["dark"])
    for name in ("good", "bad"):
        for family in FAMILIES:
            rows = role.rows_of(family)
            by_seed = [roc_auc_score(role.label[rows], score[rows]) for score in role.score[name]]
            np.testing.assert_allclose(found[name][family].by_seed, by_seed)
            assert found[name][family].value == pytest.approx(np.mean(by_seed))
            assert found[name][family].spread == pytest.approx(np.std(by_seed, ddof=1))
        assert found[name][ALL].value == pytest.approx(np.mean([found[name][f].value for f in FAMILIES]))
        assert found[name][NEW].value == found[name]["grey"].value  # nobody has learned from it


def test_intervals_resample_subjects_and_average_seeds_within(role: RoleScores) -> None:
    """With one seed the interval is that of `bootstrap_by_subject` on the same draws; with three it is not the widest."""
    rows = role.rows_of("grey")
    alone = book({"one": [table(1, 2.0)]})
    known = bootstrap_by_subject(
        auroc, alone.label[rows], alone.score["one"][0][rows], alone.subject[rows].astype(str), n=200, seed=0
    )
    assert alone.estimate("one", auroc, rows).interval == pytest.approx((known.low, known.high))
    low, high = role.estimate("good", auroc, rows).interval
    assert low < role.estimate("good", auroc, rows).value < high
    widths = [np.subtract(*book({"one": [table(s, 2.0)]}).estimate("one", auroc, rows).interval[::-1]) for s in (1, 2, 3)]
    assert high - low < max(widths)


def test_subjects_that_differ_widen_the_interval() -> None:
    """As they do not when images are resampled: the scores of a subject's images move together."""
    rows = book({"a": [table(1, 2.0)]}).rows_of("grey")
    widths = []
    for noise in (0.0, 3.0):
        low, high = book({"a": [table(1, 2.0, subject_noise=noise)]}).estimate("a", auroc, rows).interval
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_rows_of_metrics(role: RoleScores) -> None:
    """Golden numbers: average precision, prevalence, rates at thresholds, and what stands behind each."""
    chosen = {name: {0.1: [1.0] * len(role.score[name])} for name in role.score}
    supervision = {"good": "none", "bad": "synthetic", "twin": "none"}
    rows = metric_rows("test", role, areas(role, ["dark"]), supervision, chosen, ["dark"])
    pa.Table.from_pylist(rows, schema=METRICS_SCHEMA)
    found = {(r["detector"], r["family"], r["metric"]): r for r in rows}
    mask, normal = role.rows_of("grey"), role.label == 0
    label, score = role.label[mask], role.score["good"][:, mask]
    precision = np.mean([average_precision_score(label, s) for s in score])
    assert found["good", "grey", "auprc"]["value"] == pytest.approx(precision)
    assert found["good", "grey", "prevalence"]["value"] == pytest.approx(80 / 200)
    assert found["good", "grey", "sensitivity"]["value"] == pytest.approx((score[:, label == 1] > 1.0).mean())
    assert found["good", "grey", "accuracy"]["value"] == pytest.approx(((score > 1.0) == label).mean())
    false = found["good", "", "false_positive_rate"]
    assert false["value"] == pytest.approx((role.score["good"][:, normal] > 1.0).mean())
    assert (false["rate"], false["normals"], false["anomalies"], false["subjects"]) == (0.1, 120, 0, PEOPLE)
    row = found["good", ALL, "auroc"]
    assert (row["seeds"], row["normals"], row["anomalies"], row["supervision"]) == (3, 120, 160, "none")
    assert found["good", NEW, "auroc"]["anomalies"] == 80
    assert found["bad", ALL, "auroc"]["seeds"] == 2


def test_a_detector_does_not_differ_from_itself(role: RoleScores) -> None:
    """Nor from its twin: exactly 0, interval and all."""
    found = areas(role, [])
    itself = found["good"]["grey"].minus(found["good"]["grey"])
    assert (itself.value, itself.interval, itself.spread) == (0.0, (0.0, 0.0), 0.0)
    rows = [row for row in paired_rows(found, "good", {}) if row["detector"] == "twin"]
    assert rows
    for row in rows:
        assert (row["difference"], row["low"], row["high"]) == (0.0, 0.0, 0.0)


def test_paired_differences_are_of_the_same_resamples(role: RoleScores) -> None:
    """The difference is that of the means, and its interval narrower than two intervals of subjects that differ together."""
    found = areas(role, ["dark"])
    rows = paired_rows(found, "bad", {"none": "good"})
    pa.Table.from_pylist(rows, schema=PAIRED_SCHEMA)
    row = next(r for r in rows if (r["detector"], r["against"], r["family"]) == ("good", "bad", "grey"))
    assert row["difference"] == pytest.approx(found["good"]["grey"].value - found["bad"]["grey"].value)
    assert row["low"] > 0
    assert {r["why"] for r in rows} == {"reference", "best baseline without anomalies"}
    assert paired_rows(found, "failed", {}) == []


def test_the_best_baseline_is_of_its_kind_and_not_our_own() -> None:
    area = {
        name: {ALL: Estimate(np.array([value]), np.empty(0))} for name, value in (("a", 0.9), ("b", 0.8), ("c", 0.7), ("d", 0.6))
    }
    kinds = {"a": "none", "b": "none", "c": "none", "d": "synthetic"}
    assert best_baselines(area, kinds, ["a"]) == {"none": "b", "synthetic": "d"}
    assert best_baselines(area, kinds, ["a", "b", "c", "d"]) == {}


def test_strata_hold_what_they_say(role: RoleScores) -> None:
    """Thirds of an anomaly's contrast against all normal images; sites, ages and places against those of the same part."""
    rows = strata_rows(role)
    pa.Table.from_pylist(rows, schema=STRATA_SCHEMA)
    mine = [r for r in rows if r["detector"] == "good"]
    assert {r["property"] for r in mine if r["family"] == "dark"} == {"size", "contrast"}
    whole = {r["property"] for r in mine if r["family"] == ALL}
    assert whole == {"site", "age_years", "position_mm x", "position_mm z"} | ({"position_mm y"} & whole)
    assert {r["level"] for r in mine if r["property"] == "site"} == {"north", "south"}
    contrast = np.array([0.0 if v is None else v for v in role.columns["contrast"].to_pylist()])
    low = next(r for r in mine if (r["family"], r["property"], r["level"]) == ("dark", "contrast", "low"))
    part = (role.label == 0) | ((role.family == "dark") & (contrast < low["to_value"]))
    assert low["rows"] == int((part & (role.label == 1)).sum())
    assert low["value"] == pytest.approx(np.mean([roc_auc_score(role.label[part], s[part]) for s in role.score["good"]]))
    north = next(r for r in mine if r["level"] == "north")
    part = role.columns["site"].to_numpy(zero_copy_only=False) == "north"
    assert north["value"] == pytest.approx(np.mean([roc_auc_score(role.label[part], s[part]) for s in role.score["good"]]))
    assert (north["rows"], north["subjects"]) == (80, 5)


def test_mean_roc_curves_have_the_mean_area(role: RoleScores) -> None:
    rows = roc_rows(role)
    pa.Table.from_pylist(rows, schema=ROC_SCHEMA)
    for family in ("grey", ALL):
        points = np.array([(r["fpr"], r["tpr"]) for r in rows if r["detector"] == "good" and r["family"] == family])
        assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(areas(role, [])["good"][family].value, abs=0.01)
        assert (np.diff(points, axis=0) >= 0).all()


def test_units_that_scored_other_images_are_refused() -> None:
    with pytest.raises(DataError, match="other images"):
        book({"a": [table(1, 1.0)], "b": [table(1, 1.0, drop=1)]})


def test_one_subject_has_no_interval() -> None:
    one = table(1, 2.0).slice(0, 28)
    estimate = book({"a": [one]}).estimate("a", auroc, np.ones(28, bool))
    assert np.isfinite(estimate.value)
    assert np.isnan(estimate.interval).all()
