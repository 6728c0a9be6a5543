"""An evaluation end to end on toys: tables, resuming, failures, missing stages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from normscape.config import Config
from normscape.errors import ConfigError, DataError, UserError
from normscape.evaluation.cases import Cases
from normscape.evaluation.evaluating import choose_seeds, evaluate, quick
from normscape.evaluation.experiment import NotedFolders, choose_detectors, find_experiment
from normscape.evaluation.results import Results
from normscape.evaluation.running import score_table
from normscape.evaluation.units import Unit, finished_unit, plan_units
from tests.evaluation.toys import detector, evaluation, family

if TYPE_CHECKING:
    from tests.evaluation.conftest import Prepared


def run(prepared: Prepared) -> Results:
    return evaluate(prepared.config, prepared.runs, command="normscape evaluate here.yaml")


def table(results: Results, name: str) -> list[dict]:
    return pq.read_table(results.folder / f"{name}.parquet").to_pylist()


def scores(prepared: Prepared) -> dict[str, pa.Table]:
    """Scores of every unit."""
    experiment = prepared.experiment
    return {u.name: pq.read_table(u.folder(experiment) / "scores.parquet") for u in plan_units(experiment)}


def test_tables_of_an_evaluation(chairs: Prepared) -> None:
    """The distance to training images finds dark blocks, the blind one does not; scores tell roles, labels and known values."""
    results = run(chairs)
    assert results.failures == ()
    found = {(r["role"], r["detector"], r["family"], r["metric"]): r for r in table(results, "metrics")}
    assert found["test", "near", "dark", "auroc"]["value"] > 0.7
    assert found["test", "blind", "all families", "auroc"]["low"] < 0.5 < found["test", "blind", "all families", "auroc"]["high"]
    assert found["test", "near", "dark", "auroc"]["seeds"] == 2
    (scored, *_) = scores(chairs).values()
    rows = scored.to_pylist()
    assert {row["role"] for row in rows} == {"healthy", "synthetic", "test"}
    assert {row["label"] for row in rows if row["role"] == "healthy"} == {0}
    assert all((row["family"] == "") == (row["label"] == 0) == (row["size"] is None) for row in rows)
    assert {row["angle_degrees"] for row in rows} <= {0.0, 29.0, 58.0, 87.0}
    roles = {role: {row["subject"] for row in rows if row["role"] == role} for role in ("healthy", "synthetic", "test")}
    assert len(set.union(*roles.values())) == sum(map(len, roles.values()))  # nobody in two
    about = json.loads((results.folder / "evaluation.json").read_text())
    assert about == results.about
    assert about["command"] == "normscape evaluate here.yaml"
    assert about["subjects"] == {"healthy": 8, "synthetic": 8, "test": 14}
    assert about["best_baselines"] == {"none": "blind"}  # `near` is our own
    assert {r["detector"] for r in table(results, "costs")} == {"near", "blind"}
    assert table(results, "failures") == []


def test_thresholds_keep_their_promise_on_healthy_validation(chairs: Prepared) -> None:
    run(chairs)
    experiment = chairs.experiment
    for unit in plan_units(experiment):
        about = finished_unit(experiment, unit)
        scored = pq.read_table(unit.folder(experiment) / "scores.parquet").to_pandas()
        healthy = scored[scored.role == "healthy"].score
        for rate in (0.1, 0.3):
            assert (healthy > about["thresholds"][f"{rate:g}"]).mean() <= rate


def test_costs_count_what_another_detector_saved(chairs: Prepared) -> None:
    """Each second once: those of fitting with fitting, those of an image with the image."""
    found = run(chairs.evaluating(detectors=[detector("saving", "Saving")], own=["saving"]))
    (costs,) = table(found, "costs")
    assert costs["fit_seconds"] == pytest.approx(10.0, abs=2.0)
    assert costs["image_ms"] == pytest.approx(1000.0, rel=0.2)


def test_units_score_families_in_orders_of_their_own(chairs: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that two that run at once share what they project. Their tables hold the same rows in the same order all the same."""
    orders: dict[str, list[str]] = {}

    def spied(unit: Unit, cases: Cases, family: str, *rest: Any) -> pa.Table:
        if cases.role == "synthetic":
            orders.setdefault(unit.name, []).append(family)
        return score_table(unit, cases, family, *rest)

    monkeypatch.setattr("normscape.evaluation.running.score_table", spied)
    run(chairs)
    assert {frozenset(order) for order in orders.values()} == {frozenset({"", "dark", "grey"})}
    assert len({tuple(order) for order in orders.values()}) > 1
    rows = [table.select(["role", "family", "sample_id", "subject", "label"]) for table in scores(chairs).values()]
    assert len(rows) == 4
    assert all(one.equals(rows[0]) for one in rows)
    synthetic = [row["family"] for row in rows[0].to_pylist() if row["role"] == "synthetic"]
    assert list(dict.fromkeys(synthetic)) == ["", "dark", "grey"]


def test_a_second_time_nothing_is_left_to_do(chairs: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(chairs)
    monkeypatch.setattr("normscape.evaluation.running.run_unit", None)  # would raise if it were called
    again = run(chairs)
    assert again.folder == first.folder
    assert {k: v for k, v in again.about.items() if k != "finished"} == {k: v for k, v in first.about.items() if k != "finished"}


def test_a_killed_evaluation_resumed_equals_an_undisturbed_one(chairs: Prepared, tmp_path: Path) -> None:
    """Interrupted in the third of four units: two stand, the same command does the rest, and every score is the same."""
    detectors = [detector("near"), detector("dies", "Killed", marker=str(tmp_path / "mark"), seed=1)]
    dying = chairs.evaluating(detectors=detectors)
    with pytest.raises(KeyboardInterrupt):
        run(dying)
    units = plan_units(dying.experiment)
    assert [finished_unit(dying.experiment, unit) is not None for unit in units] == [True, True, True, False]
    left = units[3].folder(dying.experiment)
    (left.parent / f"{left.name}.1.partial").mkdir()  # what a process that is killed while it writes leaves
    resumed = run(dying)
    assert not list(left.parent.glob("*.partial"))
    undisturbed = scores(dying)
    for folder in left.parent.iterdir():
        (folder / "unit.json").unlink()  # nothing is finished any more
    again = run(dying)
    for name, found in scores(dying).items():
        assert found.equals(undisturbed[name]), name
    for name in ("metrics", "strata", "roc", "paired"):
        assert table(again, name) == table(resumed, name)


def test_a_detector_that_fails_is_reported_and_the_others_stand(chairs: Prepared) -> None:
    """One fails in `fit`, one gives no numbers with one of two seeds; both reasons are in the table."""
    alone = run(chairs.evaluating(detectors=[detector("near")]))
    failing = [detector("near"), detector("never", "Fails"), detector("half", "Fails", seeds=[1], scoring=True)]
    results = run(chairs.evaluating(detectors=failing))
    reasons = {(row["detector"], row["seed"]): row["reason"] for row in table(results, "failures")}
    assert set(reasons) == {("never", 0), ("never", 1), ("half", 1)}
    assert reasons["never", 0] == "while it was fitted: RuntimeError: nothing to hold on to"
    assert "scores that are not finite" in reasons["half", 1]
    assert [unit.name for unit, _ in results.failures] == ["never, seed 0", "never, seed 1", "half, seed 1"]
    metrics = table(results, "metrics")
    assert {row["detector"]: row["seeds"] for row in metrics} == {"near": 2, "half": 1}
    near = [row for row in metrics if row["detector"] == "near"]
    assert near == [row for row in table(alone, "metrics") if row["detector"] == "near"]
    (trace,) = (results.folder.parent / "units").glob("never-0-*.failed.json")
    assert "RuntimeError: nothing to hold on to" in json.loads(trace.read_text())["trace"]


def test_no_detector_at_all_is_an_error(chairs: Prepared) -> None:
    with pytest.raises(UserError, match="no detector could be evaluated: never, seed 0: while it was fitted"):
        run(chairs.evaluating(detectors=[detector("never", "Fails")]))


def test_learning_from_synthetic_anomalies_is_told_apart(chairs: Prepared) -> None:
    results = run(chairs.evaluating(detectors=[detector("near"), detector("learner", "Learner")]))
    kinds = {row["detector"]: row["supervision"] for row in table(results, "costs")}
    assert kinds == {"near": "none", "learner": "synthetic"}
    assert results.about["best_baselines"] == {"synthetic": "learner"}


def test_only_what_changed_is_done_again(chairs: Prepared, tmp_path: Path) -> None:
    """Other resamplings or references change no unit; other settings change their detector; other images change all."""
    run(chairs)
    before = {unit.name: unit.key for unit in plan_units(chairs.experiment)}

    def keys(**changes: object) -> set[str]:
        found = {unit.name: unit.key for unit in plan_units(chairs.evaluating(**changes).experiment)}
        return {name for name, key in found.items() if before.get(name) != key}

    assert keys(bootstrap_samples=61, reference="blind", batch_size=3, own=[]) == set()
    assert keys(detectors=[detector("near", kept=9), detector("blind", "Blind")]) == {"near, seed 0", "near, seed 1"}
    assert keys(test_images=23) == set(before)
    assert keys(families=[family("dark", value=-0.5), family("grey", value=0.1)]) == set(before)
    assert keys(seeds=[1, 2]) == {"near, seed 2", "blind, seed 2"}


def test_settings_that_a_detector_reads_are_in_its_key(chairs: Prepared) -> None:
    """Other trees mean another conditional detector, and the same deviations; how many test images a run projects is nobody's
    concern."""
    names = ["conditional", "conditional_unsupervised", "conditional_network", "deviation"]
    one = replace(chairs.evaluating(detectors=names[-1:]).experiment, config=chairs.evaluating(detectors=names).config)

    def changed(**sections: dict[str, Any]) -> set[str]:
        made = {name: getattr(one.config, name).model_copy(update=fields) for name, fields in sections.items()}
        other = replace(one, config=one.config.model_copy(update=made))
        keys = [{unit.name: unit.key for unit in plan_units(experiment)} for experiment in (one, other)]
        return {name.partition(",")[0] for name, key in keys[0].items() if keys[1][name] != key}

    assert changed(scoring={"max_depth": (2,)}) == {"conditional", "conditional_unsupervised"}
    assert changed(projection={"steps": 7}) == {"conditional", "conditional_unsupervised"}
    assert changed(randomisation={"share": 0.5}) == {"conditional", "conditional_network"}
    assert changed(projection={"test_samples": 7}, scoring={"bootstrap_samples": 9}) == set()


def test_the_size_of_a_batch_changes_no_score(chairs: Prepared) -> None:
    run(chairs)
    known = scores(chairs)
    other = chairs.evaluating(batch_size=3)
    for path in (chairs.experiment.folder / "units").iterdir():
        (path / "unit.json").unlink()
    run(other)
    for name, found in scores(other).items():
        np.testing.assert_allclose(found["score"].to_numpy(), known[name]["score"].to_numpy(), rtol=1e-5)


def test_missing_stages_are_named_with_their_command(chairs: Prepared) -> None:
    """A detector that says what it reads stops the evaluation before it begins; one that does not fails by itself."""
    reading = chairs.evaluating(detectors=[detector("near"), detector("reader", "StageReader")])
    with pytest.raises(UserError, match=r"not finished yet: gan; reader reads .* `normscape run 'my config.yaml' --to gan`"):
        evaluate(reading.config, reading.runs, config_path="my config.yaml")
    quiet = chairs.evaluating(detectors=[detector("near"), detector("quiet", "QuietReader", stage="gan")], seeds=[0])
    results = run(quiet)
    assert results.failures[0][1].endswith("stage gan is not finished; run `normscape run CONFIG --to gan` first")


def test_stages_that_were_read_are_noted(chairs: Prepared) -> None:
    """A unit whose stages have other keys now is not up to date."""
    quiet = chairs.evaluating(detectors=[detector("quiet", "QuietReader")], seeds=[0])
    run(quiet)
    experiment = quiet.experiment
    (unit,) = plan_units(experiment)
    assert finished_unit(experiment, unit)["stages"] == {"prepare": experiment.keys["prepare"]}
    path = unit.folder(experiment) / "unit.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"stages": {"prepare": "another"}}))
    assert finished_unit(experiment, unit) is None


def test_folders_note_who_was_asked_for() -> None:
    folders = NotedFolders({"gan": Path("gan"), "score": Path("score")})
    assert folders.get("normals") is None
    assert "score" in folders
    assert folders["gan"] == Path("gan")
    assert folders.asked == {"normals", "score", "gan"}
    with pytest.raises(UserError, match="stage latents is not finished"):
        folders["latents"]


def test_a_run_without_prepared_data(toy_config: type, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not finished yet: prepare\. Run `normscape run CONFIG --to prepare` first"):
        find_experiment(toy_config(evaluation=evaluation()), tmp_path)


def test_families_that_do_not_fit_stop_it_at_once(chairs: Prepared) -> None:
    impossible = chairs.evaluating(families=[family("dark"), family("lesion", "Impossible")])
    with pytest.raises(DataError, match="lesion cannot be drawn into these images: no place for it"):
        run(impossible)


def test_a_detector_that_is_not_there(chairs: Prepared) -> None:
    with pytest.raises(ConfigError, match="cannot be imported"):
        run(chairs.evaluating(detectors=[detector("near", "Missing")]))


def test_choices_of_the_command_line(chairs: Prepared) -> None:
    """Some detectors, other seeds, and the quick form; the rest of the configuration stays."""
    config = chairs.config.model_copy(
        update={"evaluation": chairs.config.evaluation.model_copy(update={"reference": "blind", "scans": 3})}
    )
    chosen = choose_detectors(config, ("near",)).evaluation
    assert [entry.name for entry in chosen.detectors] == ["near"]
    assert chosen.reference is None
    assert choose_detectors(config, ("blind", "near")).evaluation.reference == "blind"
    with pytest.raises(ConfigError, match=r"--detectors: other unknown; evaluation\.detectors names near, blind"):
        choose_detectors(config, ("other",))
    assert choose_seeds(config, [7]).evaluation.seeds == (7,)
    small = quick(config).evaluation
    assert (small.seeds, small.scans, small.test_images, small.network_images) == ((0,), 1, 24, 2000)
    assert Config.model_validate(quick(config).model_dump(mode="json")) == quick(config)
