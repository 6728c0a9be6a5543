"""The score stage on a small synthetic table of projections: files, honesty towards the test split, determinism, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from normscape.config import Config
from normscape.errors import DataError
from normscape.scoring.detectors import main_detector
from normscape.scoring.features import read_projections
from normscape.scoring.forest import ForestDetector
from normscape.stages.core import StageContext
from normscape.stages.fitted import load_detectors
from normscape.stages.score import run
from normscape.training.recorder import SilentRecorder

DETECTORS = ["l1", "forest", "forest_residuals", "unsupervised"]


def _config(**scoring: Any) -> Config:
    settings = {"max_depth": [3], "n_estimators": [10, 20], "folds": 3, "bootstrap_samples": 50} | scoring
    return Config.model_validate(
        {
            "name": "test",
            "image_size": 8,
            "attributes": [
                {
                    "name": "identity",
                    "kind": "embedding",
                    "latent_dim": 4,
                    "output_dim": 8,
                    "distance": "euclidean",
                    "tau_same": 0.05,
                    "tau_different": 0.35,
                },
                {
                    "name": "angle",
                    "kind": "value",
                    "latent_dim": 4,
                    "output_dim": 1,
                    "distance": "l1",
                    "tau_same": 0.03,
                    "tau_different": 0.15,
                    "column": "angle_degrees",
                    "value_max": 90.0,
                },
            ],
            "generator": {"channels": [8, 8]},
            "discriminator": {"channels": [8, 8]},
            "gan": {"steps": 1},
            "scoring": settings,
        }
    )


def _table(seed: int = 0) -> pd.DataFrame:
    """12 train and 4 test subjects x 20 rows; lengths and residuals rise with an anomaly's contrast."""
    generator = np.random.default_rng(seed)
    n = 320
    label = np.tile([0, 1], n // 2)
    contrast = np.where(label == 1, generator.uniform(0.1, 1.0, n), np.nan)
    shift = np.nan_to_num(contrast)
    table = pd.DataFrame(
        {
            "sample_id": np.arange(n),
            "subject": np.repeat([f"chair{i:02d}" for i in range(16)], 20),
            "split": np.repeat(["train"] * 12 + ["test"] * 4, 20),
            "label": label,
            "angle_degrees": generator.uniform(0, 90, n).astype(np.float32),
        }
    )
    for name in ("identity", "other"):
        for side in (4, 8):
            table[f"length/{name}/{side}"] = generator.normal(2.0, 0.3, n) + 0.3 * shift
    table["residual_l1"] = generator.normal(0.1, 0.02, n) + 0.1 * shift
    table["residual_recognition"] = generator.normal(0.1, 0.02, n) + 0.2 * shift
    table["blot_contrast"] = contrast
    table["blot_radius_px"] = np.where(label == 1, generator.uniform(1, 2, n), np.nan)
    return table


def _run(folder: Path, table: pd.DataFrame, config: Config | None = None) -> tuple[Path, dict[str, float]]:
    """The stage's folder and its headline metrics."""
    project, score = folder / "project", folder / "score"
    project.mkdir(parents=True)
    score.mkdir()
    table.to_parquet(project / "projections.parquet")
    context = StageContext(
        config=config or _config(),
        folder=score,
        inputs={"project": project},
        device=torch.device("cpu"),
        recorder=SilentRecorder(),
    )
    return score, run(context)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    return _run(tmp_path_factory.mktemp("score"), _table())


def test_metrics_hold_every_detector_split_and_metric_with_intervals(finished: tuple[Path, dict[str, float]]) -> None:
    metrics = pd.read_parquet(finished[0] / "metrics.parquet")
    assert list(metrics["detector"].unique()) == DETECTORS
    assert len(metrics) == len(DETECTORS) * 3 * 4
    assert (metrics["low"] <= metrics["value"]).all()
    assert (metrics["value"] <= metrics["high"]).all()
    row = metrics.set_index(["detector", "split", "metric"])
    assert row.loc[("forest", "test", "accuracy"), "thesis"] == 0.884
    assert row.loc[("l1", "train", "auroc"), "thesis"] == 0.937
    assert row["thesis"].notna().sum() == 8
    assert row.loc[("l1", "test", "prevalence"), "value"] == 0.5
    assert row.loc[("l1", "test", "auroc"), "subjects"] == 4
    assert row.loc[("forest", "train", "auroc"), "value"] > row.loc[("forest", "train_cv", "auroc"), "value"]


def test_scores_are_aligned_and_out_of_fold_only_for_training_rows(finished: tuple[Path, dict[str, float]]) -> None:
    scores = pd.read_parquet(finished[0] / "scores.parquet")
    assert scores["sample_id"].tolist() == list(range(320))
    assert [c for c in scores if c.endswith("_score")] == [f"{name}_score" for name in DETECTORS]
    for name in DETECTORS:
        assert scores[f"{name}_score"].notna().all()
        assert (scores[f"{name}_out_of_fold"].notna() == (scores["split"] == "train")).all()


def test_headline_has_test_numbers_with_intervals(finished: tuple[Path, dict[str, float]]) -> None:
    headline = finished[1]
    for name in DETECTORS:
        for metric in ("accuracy", "auroc"):
            key = f"{name}_test_{metric}"
            assert headline[f"{key}_low"] <= headline[key] <= headline[f"{key}_high"]
    assert all(isinstance(value, float) for value in headline.values())
    assert headline["forest_residuals_test_auroc"] > headline["forest_test_auroc"] - 0.05


def test_saved_forest_reproduces_the_scores(finished: tuple[Path, dict[str, float]]) -> None:
    folder = finished[0]
    detector, names = ForestDetector.load(folder / "forest.skops")
    table = read_projections(folder.parent / "project" / "projections.parquet")
    scores = pd.read_parquet(folder / "scores.parquet")
    assert np.array_equal(detector.decision_function(table.features(names)), scores["forest_score"])
    assert names == json.loads((folder / "detectors.json").read_text())["forest"]["features"]
    assert "residual_recognition" not in names


def test_curves_importances_and_grid(finished: tuple[Path, dict[str, float]]) -> None:
    folder = finished[0]
    curves = pd.read_parquet(folder / "roc.parquet")
    for _, curve in curves.groupby(["detector", "split"]):
        assert curve["fpr"].is_monotonic_increasing
        assert curve["tpr"].iloc[-1] == 1.0
    assert pd.read_parquet(folder / "importance.parquet")["importance"].sum() == pytest.approx(1.0)
    grid = pd.read_parquet(folder / "grid.parquet")
    assert grid["n_estimators"].tolist() == [10, 20]
    assert grid["mean_auroc"].between(0, 1).all()


def test_strata_find_that_faint_blots_are_harder(finished: tuple[Path, dict[str, float]]) -> None:
    strata = pd.read_parquet(finished[0] / "strata.parquet")
    part = strata[(strata["detector"] == "l1") & (strata["property"] == "blot_contrast")].set_index("tercile")
    assert part.loc["low", "value"] < part.loc["high", "value"]
    assert part["rows"].sum() == 40
    assert set(strata["property"]) == {"blot_contrast", "blot_radius_px"}


def test_test_labels_influence_no_score(tmp_path: Path, finished: tuple[Path, dict[str, float]]) -> None:
    """Permuted test labels: every score, threshold and setting stays the same, bit for bit."""
    table = _table()
    rows = table["split"] == "test"
    table.loc[rows, "label"] = np.random.default_rng(9).permutation(table.loc[rows, "label"])
    folder, headline = _run(tmp_path, table)
    before, after = (pd.read_parquet(f / "scores.parquet").drop(columns="label") for f in (finished[0], folder))
    pd.testing.assert_frame_equal(before, after, check_exact=True)
    for name in ("detectors.json", "forest.json", "l1.json"):
        assert (folder / name).read_text() == (finished[0] / name).read_text()
    assert headline["forest_test_auroc"] < finished[1]["forest_test_auroc"]


def test_test_rows_influence_no_threshold(tmp_path: Path, finished: tuple[Path, dict[str, float]]) -> None:
    """Not even the values of test rows matter for what is fitted."""
    table = _table()
    rows = table["split"] == "test"
    table.loc[rows, "residual_l1"] = 5.0
    folder, _ = _run(tmp_path, table)
    assert (folder / "detectors.json").read_text() == (finished[0] / "detectors.json").read_text()


def _with_calibration(table: pd.DataFrame, shift: float) -> pd.DataFrame:
    """The last two training subjects stand for unseen ones, whose residuals are larger."""
    rows = table["subject"].isin(["chair10", "chair11"])
    table.loc[rows, "split"] = "calibration"
    table.loc[rows | (table["split"] == "test"), "residual_l1"] += shift
    return table


def test_calibration_rows_choose_thresholds_and_nothing_else(tmp_path: Path) -> None:
    """Unseen subjects are rebuilt worse: thresholds that follow them bring the accuracy back, scores do not move."""
    plain = _with_calibration(_table(), 0.1)
    plain = plain[plain["split"] != "calibration"].reset_index(drop=True)
    without, before = _run(tmp_path / "without", plain)
    folder, after = _run(tmp_path / "with", _with_calibration(_table(), 0.1))
    assert after["l1_test_accuracy"] > before["l1_test_accuracy"] + 0.1
    assert after["l1_threshold"] == pytest.approx(before["l1_threshold"] + 0.1, abs=0.03)
    for name in ("forest", "unsupervised"):
        assert after[f"{name}_threshold"] != before[f"{name}_threshold"]
        assert after[f"{name}_test_auroc"] == before[f"{name}_test_auroc"]
    scores = pd.read_parquet(folder / "scores.parquet")
    kept = scores[scores["split"] != "calibration"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, pd.read_parquet(without / "scores.parquet"), check_exact=True)
    metrics = pd.read_parquet(folder / "metrics.parquet")
    assert list(metrics["split"].unique()) == ["train", "train_cv", "calibration", "test"]


def test_levelled_training_rows_move_the_forests_alone(tmp_path: Path) -> None:
    """Where unseen subjects are rebuilt worse, a forest on levelled rows ranks them better; other detectors do not notice."""
    table = _with_calibration(_table(), 0.1)
    _, before = _run(tmp_path / "without", table)
    settings = _config().model_dump() | {"projection": {"calibration_samples": 40}}
    levelled = Config.model_validate(settings | {"scoring": settings["scoring"] | {"level": "calibration"}})
    _, after = _run(tmp_path / "with", table, levelled)
    assert after["forest_test_auroc"] > before["forest_test_auroc"]
    for name in ("l1", "unsupervised"):
        assert {key: value for key, value in after.items() if key.startswith(name)} == {
            key: value for key, value in before.items() if key.startswith(name)
        }


def test_calibration_rows_give_p_values_whose_promise_is_looked_at(
    tmp_path: Path, finished: tuple[Path, dict[str, float]]
) -> None:
    """Of two healthy subjects p is at least 1/3; anomalous rows get smaller ones; without calibration rows there are none."""
    folder, headline = _run(tmp_path, _with_calibration(_table(), 0.1))
    p = pd.read_parquet(folder / "p_values.parquet")
    assert list(p) == ["sample_id", "subject", "label", *(f"{name}_p_value" for name in DETECTORS)]
    assert len(p) == 80
    for name in DETECTORS:
        values = p[f"{name}_p_value"]
        assert values.between(1 / 3, 1).all()
        assert values[p["label"] == 1].mean() < values[p["label"] == 0].mean()
    rates = pd.read_parquet(folder / "false_positives.parquet")
    assert set(rates["method"]) == {"conformal", "pooled", "share"}
    assert (rates["calibration_subjects"] == 2).all()
    assert (rates.loc[rates["method"] == "conformal", "false_positives"] == 0).all()  # 1/3 is above every promised rate
    share = rates[(rates["method"] == "share") & (rates["promised"] == 0.1)].set_index("detector")["false_positives"]
    assert share["l1"] == pytest.approx(0.1, abs=0.12)
    pooled = rates[rates["method"] == "pooled"].set_index(["detector", "promised"])["false_positives"]
    assert (pooled <= rates[rates["method"] == "share"].set_index(["detector", "promised"])["false_positives"] + 0.1).all()
    assert headline["forest_false_positives_at_5"] == pooled["forest", 0.05]
    assert 0 < pooled["l1", 0.1] < 0.25
    described = json.loads((folder / "conformal.json").read_text())
    assert described["settings"] == {"conditions": ["angle_degrees"], "steps": 1000}
    assert described["scores"]["forest"] == {"subjects": 2, "images": 20, "smallest_p": pytest.approx(1 / 3), "levelled": True}
    for name in ("conformal.json", "conformal.safetensors", "p_values.parquet", "false_positives.parquet"):
        assert not (finished[0] / name).exists()
    assert not any("false_positives" in name for name in finished[1])


def test_test_labels_influence_no_p_value(tmp_path: Path) -> None:
    table = _with_calibration(_table(), 0.1)
    first, _ = _run(tmp_path / "first", table)
    rows = table["split"] == "test"
    table.loc[rows, "label"] = np.random.default_rng(9).permutation(table.loc[rows, "label"])
    second, _ = _run(tmp_path / "second", table)
    before, after = (pd.read_parquet(f / "p_values.parquet").drop(columns="label") for f in (first, second))
    pd.testing.assert_frame_equal(before, after, check_exact=True)


def test_same_input_same_files(tmp_path: Path, finished: tuple[Path, dict[str, float]]) -> None:
    folder, headline = _run(tmp_path, _table())
    assert headline == finished[1]
    for name in ("scores", "metrics", "roc", "strata", "grid"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(folder / f"{name}.parquet"), pd.read_parquet(finished[0] / f"{name}.parquet"), check_exact=True
        )


def test_what_is_usual_is_what_was_scanned(tmp_path: Path) -> None:
    """Randomised training images teach the forests alone: other detectors, thresholds and p-values are as without them."""
    table = _with_calibration(_table(), shift=0.0)
    rows = (table["split"] == "train") & (table.index % 5 == 0)
    changed = table.assign(randomised=rows.astype(int))
    changed.loc[rows, [name for name in table.columns if name.startswith(("length", "residual"))]] += 3.0
    folder, found = _run(tmp_path / "with", changed)
    left = table[~rows].reset_index(drop=True)
    without, expected = _run(tmp_path / "without", left)
    scores, plain = (pd.read_parquet(path / "scores.parquet") for path in (folder, without))
    kept = scores[~rows.to_numpy()].reset_index(drop=True)
    np.testing.assert_allclose(kept["unsupervised_score"], plain["unsupervised_score"], rtol=1e-12)
    assert found["unsupervised_threshold"] == expected["unsupervised_threshold"]
    assert found["unsupervised_false_positives_at_5"] == pytest.approx(expected["unsupervised_false_positives_at_5"], abs=0.02)
    assert not np.allclose(kept["forest_score"], plain["forest_score"])
    assert scores["forest_out_of_fold"].notna().sum() == (table["split"] == "train").sum()


def test_a_network_is_heard_together_with_the_forest(tmp_path: Path) -> None:
    """Its column makes two more detectors and changes no other: the pool is the mean of the log odds of the forest and of the
    column, thresholds come from the calibration rows, and the files bring it back."""
    table = _with_calibration(_table(), shift=0.0)
    plain, _ = _run(tmp_path / "plain", table)
    said = np.random.default_rng(5).normal(size=len(table)) + 2 * table["label"] - 1
    folder, headline = _run(tmp_path / "network", table.assign(network_log_odds=said))
    found, before = (pd.read_parquet(path / "scores.parquet") for path in (folder, plain))
    for column in before.columns:
        np.testing.assert_array_equal(found[column], before[column])
    least = 0.5 / headline["forest_n_estimators"]
    forest = found["forest_score"].clip(least, 1 - least)
    expected = 1 / (1 + np.exp(-(np.log(forest / (1 - forest)) + said) / 2))
    np.testing.assert_allclose(found["pooled_score"], expected, rtol=1e-9)
    np.testing.assert_allclose(found["network_score"], said)
    assert headline["pooled_test_auroc"] > max(headline["forest_test_auroc"], headline["network_test_auroc"]) - 0.02
    assert headline["pooled_threshold"] != 0.5
    assert "pooled_false_positives_at_5" in headline
    detectors = load_detectors(folder)
    assert main_detector(detectors) == "pooled"
    fitted = detectors["pooled"]
    assert fitted.features[-1] == "network_log_odds"
    features = table.assign(network_log_odds=said)[list(fitted.features)].to_numpy(np.float64)
    np.testing.assert_allclose(fitted.detector.decision_function(features), found["pooled_score"], rtol=1e-12)
    assert fitted.detector.threshold_ == headline["pooled_threshold"]


def test_shuffled_labels_give_chance(tmp_path: Path) -> None:
    table = _table()
    table["label"] = np.random.default_rng(3).permutation(table["label"])
    _, headline = _run(tmp_path, table)
    for name in DETECTORS:
        assert abs(headline[f"{name}_test_auroc"] - 0.5) < 0.2


def test_config_chooses_the_features_of_the_forest(tmp_path: Path) -> None:
    """With `residuals`, the thesis's features are reported beside it."""
    folder, headline = _run(tmp_path, _table(), _config(features="residuals", n_estimators=[10]))
    detectors = json.loads((folder / "detectors.json").read_text())
    assert list(detectors) == ["l1", "forest", "forest_thesis", "unsupervised"]
    assert "residual_recognition" in detectors["forest"]["features"]
    assert "residual_recognition" not in detectors["forest_thesis"]["features"]
    assert "forest_thesis_test_auroc" in headline
    assert pd.read_parquet(folder / "grid.parquet")["mean_auroc"].isna().tolist() == [True]  # one setting: no search


def test_without_other_residuals_there_is_one_forest(tmp_path: Path) -> None:
    folder, _ = _run(tmp_path, _table().drop(columns="residual_recognition"), _config(n_estimators=[10]))
    assert list(json.loads((folder / "detectors.json").read_text())) == ["l1", "forest", "unsupervised"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="angle_degrees"), "angle_degrees"),
        (lambda t: t.drop(columns="residual_l1"), "residual_l1"),
        (lambda t: t.assign(residual_l1=np.nan), r"residual_l1 \(320 of 320 rows\)"),
        (lambda t: t[(t["split"] == "train") | (t["label"] == 0)], "split test needs normal and anomalous rows"),
        (lambda t: t[(t["split"] == "test") | (t["subject"] <= "chair01")], r"scoring\.folds: 3 folds need at least 3"),
    ],
)
def test_bad_tables_name_the_file_and_what_was_found(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _run(tmp_path, change(_table()))
    assert "projections.parquet" in str(caught.value)
