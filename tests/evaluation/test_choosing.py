"""Choosing on synthetic validation: the locked test stays closed, and nothing is done twice."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from normscape.errors import UserError
from normscape.evaluation import choosing
from normscape.evaluation.choosing import compare_on_validation
from normscape.evaluation.evaluating import evaluate
from normscape.evaluation.running import Fitted, fit_unit
from tests.evaluation.toys import detector, evaluation

if TYPE_CHECKING:
    from tests.evaluation.conftest import Prepared


def test_the_locked_test_stays_closed(chairs: Prepared) -> None:
    choice = compare_on_validation(chairs.config, chairs.runs)
    assert not (chairs.experiment.folder / "readings.jsonl").exists()
    assert choice.subjects == 8
    assert choice.failures == {}
    (rows,) = [pq.read_table(choice.table).to_pylist()]
    assert {row["detector"] for row in rows} == {"near", "blind"}
    assert {row["family"] for row in rows} >= {"dark", "all families"}


def test_it_says_what_the_evaluation_says_of_synthetic_validation(chairs: Prepared) -> None:
    """The same fits on the same images: areas are equal."""
    choice = compare_on_validation(chairs.config, chairs.runs)
    results = evaluate(chairs.config, chairs.runs)
    rows = pq.read_table(results.folder / "metrics.parquet").to_pylist()
    for row in rows:
        if row["role"] == "synthetic" and row["metric"] == "auroc":
            assert choice.areas[row["detector"]][row["family"]].value == pytest.approx(row["value"], abs=1e-12)


def test_a_second_time_nothing_is_fitted(chairs: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare_on_validation(chairs.config, chairs.runs)
    monkeypatch.setattr(choosing, "fit_unit", None)  # would raise if it were called
    again = compare_on_validation(chairs.config, chairs.runs)
    assert again.table == first.table
    assert again.areas["near"]["dark"].value == first.areas["near"]["dark"].value


def test_a_detector_whose_stages_are_others_now_is_fitted_again(chairs: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it did not say that it would read them."""
    quiet = chairs.evaluating(detectors=[detector("quiet", "QuietReader", stage="gan")], seeds=[0], own=[])
    found = quiet.experiment
    folders = dict(found.folders) | {"gan": found.prepared}
    asked: list[object] = []

    def counted(*given: object) -> Fitted:
        asked.append(given)
        return fit_unit(*given)

    monkeypatch.setattr(choosing, "fit_unit", counted)
    for key, fits in (("0" * 64, 1), ("0" * 64, 1), ("1" * 64, 2)):
        keys = dict(found.keys) | {"gan": key}
        monkeypatch.setattr(choosing, "find_experiment", lambda *_, keys=keys, **__: replace(found, folders=folders, keys=keys))
        compare_on_validation(quiet.config, quiet.runs)
        assert len(asked) == fits


def test_a_detector_that_fails_leaves_the_others(chairs: Prepared) -> None:
    settings = chairs.config.evaluation.model_validate(
        evaluation(detectors=[detector("near"), detector("never", "Fails")], seeds=[0])
    )
    config = chairs.config.model_copy(update={"evaluation": settings})
    choice = compare_on_validation(config, chairs.runs)
    assert list(choice.areas) == ["near"]
    assert "nothing to hold on to" in choice.failures["never, seed 0"]
    alone = settings.model_copy(update={"detectors": settings.detectors[1:]})
    with pytest.raises(UserError, match="no detector could be fitted"):
        compare_on_validation(config.model_copy(update={"evaluation": alone}), chairs.runs)
