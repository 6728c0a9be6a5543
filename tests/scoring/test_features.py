"""Choosing features, and refusing damaged tables with a clear message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from normscape.errors import DataError
from normscape.scoring.features import evidence_columns, feature_columns, feature_sets, read_projections

LENGTHS = [f"length/{name}/{side}" for name in ("identity", "other") for side in (4, 8, 16, 32, 64)]
NAMES = ["sample_id", "angle_degrees", *LENGTHS, "residual_l1", "residual_l2", "residual_recognition", "blot_contrast"]


def test_thesis_features_are_twelve_at_64_pixels() -> None:
    chosen = feature_columns(NAMES, "thesis", ["angle_degrees"])
    assert chosen == [*LENGTHS, "angle_degrees", "residual_l1"]
    assert len(chosen) == 12


def test_thesis_features_are_ten_at_32_pixels() -> None:
    assert len(feature_columns([n for n in NAMES if not n.endswith("/64")], "thesis", ["angle_degrees"])) == 10


def test_residuals_add_every_other_residual() -> None:
    assert feature_columns(NAMES, "residuals", ["angle_degrees"])[12:] == ["residual_l2", "residual_recognition"]
    assert feature_sets(NAMES) == ["thesis", "residuals"]
    assert feature_sets([n for n in NAMES if n not in ("residual_l2", "residual_recognition")]) == ["thesis"]


def test_residuals_of_flat_places_are_a_set_of_their_own() -> None:
    """They tell of blots of one colour: only who asks for them gets them."""
    flat = ["residual_flat8", "residual_atlas_z5_flat", "residual_texture_low1"]
    names = [*NAMES, *flat, "residual_inflated", "residual_texture_high1"]
    assert feature_sets(names) == ["thesis", "residuals", "flat"]
    residuals = feature_columns(names, "residuals", ["angle_degrees"])
    assert not set(flat) & {*residuals, *feature_columns(names, "thesis", ["angle_degrees"])}
    assert {"residual_inflated", "residual_texture_high1"} <= set(residuals)  # rough is not flat
    assert set(feature_columns(names, "flat", ["angle_degrees"])) == {*residuals, *flat}
    assert not set(flat) & set(evidence_columns(names, "residuals"))
    assert set(flat) <= set(evidence_columns(names, "flat"))


def test_vector_valued_conditions_keep_all_components() -> None:
    names = [*NAMES, "position_mm_0", "position_mm_1", "position_mm_2"]
    assert feature_columns(names, "thesis", ["position_mm"])[10:13] == ["position_mm_0", "position_mm_1", "position_mm_2"]


def test_evidence_holds_no_condition_and_no_truth() -> None:
    assert evidence_columns(NAMES, "residuals") == [*LENGTHS, "residual_l1", "residual_l2", "residual_recognition"]


def test_what_networks_read_of_training_subjects_is_no_evidence() -> None:
    """But the forest sees it; `conditions_...` is the generator at the known conditions, and nothing that was read."""
    read = ["residual_output_identity", "residual_condition_angle"]
    names = [*NAMES, *read, "residual_conditions_z8"]
    assert evidence_columns(names, "residuals")[-1] == "residual_conditions_z8"
    assert not set(read) & set(evidence_columns(names, "flat"))
    assert set(read) <= set(feature_columns(names, "residuals", ["angle_degrees"]))


def test_missing_features_are_all_named() -> None:
    with pytest.raises(DataError, match=r"length/<sub-space>/<resolution>, age_years, residual_l1; found sample_id"):
        feature_columns(["sample_id"], "thesis", ["age_years"])


def _columns(**changes: Any) -> dict[str, Any]:
    return {
        "sample_id": [0, 1, 2, 3],
        "subject": ["a", "a", "b", "b"],
        "split": ["train", "train", "test", "test"],
        "label": [0, 1, 0, 1],
        "residual_l1": [0.1, 0.2, 0.3, 0.4],
        "blot_contrast": [None, 0.5, None, 0.7],
        "coordinates/other": [[1.0], [2.0], [3.0], [4.0]],
    } | changes


def _write(folder: Path, columns: dict[str, Any]) -> Path:
    path = folder / "projections.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_good_table_is_read(tmp_path: Path) -> None:
    table = read_projections(_write(tmp_path, _columns()))
    assert len(table) == 4
    assert set(table.columns) == {"residual_l1", "blot_contrast"}
    assert table.features(["residual_l1"]).tolist() == [[0.1], [0.2], [0.3], [0.4]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({k: v for k, v in _columns().items() if k != "label"}, "columns missing: label; found sample_id"),
        (_columns(label=[0, 2, 0, 1]), r"label must be 0 \(normal\) or 1 \(anomalous\), found 0, 1, 2"),
        (_columns(label=[0, None, 0, 1]), r"empty values in label \(1\)"),
        (_columns(label=[0, 1, 0, 0]), "split test needs normal and anomalous rows, found 2 normal and 0 anomalous"),
        (_columns(split=["train", "train", "val", "test"]), "split must be train, test or calibration, found val"),
        (_columns(subject=["a", "b", "b", "b"]), "subjects must be in one split only, found in both train and test: b"),
        (
            {name: values * 2 for name, values in _columns(split=["train", "train", "test", "test"]).items()}
            | {"split": ["train", "train", "test", "test", "calibration", "calibration", "test", "test"]},
            "found in both train and calibration: a",
        ),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = _write(tmp_path, columns)
    with pytest.raises(DataError, match=message) as caught:
        read_projections(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_bad_numbers_are_counted_by_column(tmp_path: Path, value: float | None) -> None:
    table = read_projections(_write(tmp_path, _columns(residual_l1=[0.1, value, 0.3, 0.4])))
    with pytest.raises(DataError, match=r"residual_l1 \(1 of 4 rows\)"):
        table.features(["residual_l1"])


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "projections.parquet"
    with pytest.raises(DataError, match="no such file"):
        read_projections(path)
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="cannot be read"):
        read_projections(path)
