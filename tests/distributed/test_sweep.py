"""Sweeps on real Ray and a real MLflow store: what they try, what they leave, and what survives a failure and a kill."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from normscape.config import Config
from normscape.configio import dump_yaml, load_config
from normscape.distributed.sweep import SweepResult, _scheduler, failures, run_sweep
from normscape.distributed.sweep_forest import cross_validate, points
from normscape.distributed.sweep_search import Cuts, Search
from normscape.distributed.sweep_trials import Trial, best_trial, read_trials
from normscape.errors import UserError
from normscape.report.sweep import build_sweep_page
from normscape.stages.core import folder_name, stage_keys
from normscape.sweepconfig import load_sweep, sweep_folder
from normscape.tracking.store import open_client

ROOT = Path(__file__).resolve().parents[2]
SPACE = {"max_depth": [2, 3], "n_estimators": [5], "min_samples_leaf": [1], "features": ["thesis", "residuals"]}


def write_forest(folder: Path, config: Config, *, broken: bool = False, **changes: Any) -> Path:
    """An experiment with a finished table of projections, and a forest sweep over it; `broken` leaves a NaN in a residual."""
    (folder / "toy.yaml").write_text(dump_yaml(config))
    projections(broken=broken).to_parquet(table_path(folder, config))
    settings = {"kind": "forest", "name": "toy-forest", "experiment": "toy.yaml", "space": SPACE, "max_concurrent": 2}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def table_path(folder: Path, config: Config) -> Path:
    """Where the run keeps its projections."""
    stage = folder / "runs" / config.name / folder_name("project", stage_keys(config)["project"])
    stage.mkdir(parents=True, exist_ok=True)
    return stage / "projections.parquet"


def projections(*, broken: bool = False) -> pd.DataFrame:
    """6 training and 2 test subjects x 20 rows; residuals rise with the anomaly."""
    random = np.random.default_rng(0)
    label = np.tile([0, 1], 80)
    table = pd.DataFrame(
        {
            "sample_id": np.arange(160),
            "subject": np.repeat([f"toy-{i}" for i in range(8)], 20),
            "split": np.repeat(["train"] * 6 + ["test"] * 2, 20),
            "label": label,
            "angle_degrees": random.uniform(0, 90, 160),
            "length/identity/4": random.normal(size=160),
            "length/other/4": random.normal(size=160),
            "residual_l1": random.normal(size=160) + 0.8 * label,
            "residual_l2": random.normal(size=160) + 1.5 * label,
        }
    )
    if broken:
        table.loc[3, "residual_l2"] = np.nan
    return table


def run(path: Path, **options: Any) -> SweepResult:
    """Run a sweep of a folder made by this file, recorded in the folder's own sqlite store."""
    runs = path.parent / "runs"
    return run_sweep(*load_sweep(path), runs, tracking_uri=store(path.parent), page=build_sweep_page, **options)


def store(folder: Path) -> str:
    """The folder's MLflow store."""
    return f"sqlite:///{folder / 'runs' / 'mlflow.db'}"


def recorded(folder: Path, experiment: str) -> tuple[Any, list[Any]]:
    """The one parent run of an MLflow experiment, and its children."""
    client = open_client(store(folder))
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    return parent, [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


def records(folder: Path) -> dict[str, str]:
    """Trial -> its file's text."""
    return {path.parent.name: path.read_text() for path in folder.glob("trials/*/trial.json")}


@pytest.fixture
def config(toy_config: Callable[..., Config]) -> Config:
    """The toy experiment."""
    return toy_config(scoring={"folds": 2})


@pytest.mark.cluster
def test_forest_grid_tries_everything_once_and_is_recorded(local_ray: None, tmp_path: Path, config: Config) -> None:
    """Every combination is a trial and a nested run; the winner's file loads and changes the scoring alone."""
    result = run(write_forest(tmp_path, config))
    table = pd.read_parquet(result.folder / "trials.parquet")
    assert len(table) == 4
    assert set(table.status) == {"finished"}
    assert result.best.score == table.score.max()
    assert result.best.point["features"] == "residuals"  # residual_l2 tells more
    best = load_config(result.folder / "best.yaml")
    assert best.scoring.max_depth == (result.best.point["max_depth"],)
    assert best.scoring.features == "residuals"
    assert best.model_dump(exclude={"scoring"}) == config.model_dump(exclude={"scoring"})
    assert not (result.folder / "ray").exists()  # none of Ray's own state is kept

    parent, children = recorded(tmp_path, "toy")
    assert parent.info.run_id == result.run_id
    assert len(children) == 4
    assert {r.info.status for r in (parent, *children)} == {"FINISHED"}
    assert sorted(r.data.metrics["score"] for r in children) == pytest.approx(sorted(table.score))
    assert parent.data.metrics["best_score"] == pytest.approx(result.best.score)
    artifacts = {item.path for item in open_client(store(tmp_path)).list_artifacts(parent.info.run_id)}
    assert {"index.html", "best.yaml", "trials.parquet"} <= artifacts


@pytest.mark.cluster
def test_failed_trials_are_reported_and_tried_again_on_request(local_ray: None, tmp_path: Path, config: Config) -> None:
    """A trial that raises is FAILED in MLflow, in the table and on the page, with its reason; the others count all the same."""
    path = write_forest(tmp_path, config, broken=True)
    said: list[str] = []
    result = run(path, say=said.append)
    assert [trial.point["features"] for trial in result.failed] == ["residuals", "residuals"]
    assert all("residual_l2 (1 of 120 rows)" in trial.reason for trial in result.failed)
    assert result.best.point["features"] == "thesis"
    text = failures(result.trials)
    assert text.startswith("2 of 4 trials FAILED:")
    assert text.count("residual_l2") == 1  # one reason, said once
    assert sum("FAILED" in line for line in said) == 2
    table = pd.read_parquet(result.folder / "trials.parquet").set_index("status")
    assert table.loc["failed", "error"].str.contains("residual_l2").all()
    assert table.loc["failed", "score"].isna().all()
    assert "residual_l2 (1 of 120 rows)" in (result.folder / "index.html").read_text()
    _, children = recorded(tmp_path, "toy")
    assert sorted(r.info.status for r in children) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert all("residual_l2" in r.data.tags["normscape.error"] for r in children if r.info.status == "FAILED")

    before = records(result.folder)
    projections().to_parquet(table_path(tmp_path, config))
    assert len(run(path).failed) == 2  # nothing is left to try: nothing runs
    assert records(result.folder) == before
    again = run(path, retry_failed=True)
    assert again.failed == []
    assert again.best.point["features"] == "residuals"
    after = records(result.folder)
    assert {key for key in before if before[key] != after[key]} == {trial.key for trial in result.failed}
    parent, children = recorded(tmp_path, "toy")  # one parent still, and a run a trial
    assert [r.info.status for r in (parent, *children)] == ["FINISHED"] * 5


@pytest.mark.cluster
def test_a_sweep_without_any_success_is_an_error(local_ray: None, tmp_path: Path, config: Config) -> None:
    path = write_forest(tmp_path, config, broken=True, space=SPACE | {"features": ["residuals"]})
    with pytest.raises(UserError, match=r"no trial succeeded; 2 of 2 trials FAILED:\n  trial 1, 2: .*residual_l2"):
        run(path)
    parent, children = recorded(tmp_path, "toy")
    assert {r.info.status for r in (parent, *children)} == {"FAILED"}


@pytest.mark.cluster
def test_optuna_goes_on_from_what_it_knows(local_ray: None, tmp_path: Path, config: Config) -> None:
    """More trials are asked for later: the first ones stand, and the new ones are new."""
    space = {"max_depth": [2, 9], "n_estimators": [3, 40], "min_samples_leaf": [1, 9]}
    path = write_forest(tmp_path, config, search="optuna", trials=2, space=space)
    first = run(path)
    before = records(first.folder)
    assert len(before) == 2
    path.write_text(path.read_text().replace("trials: 2", "trials: 4"))
    second = run(path)
    after = records(second.folder)
    assert second.folder == first.folder
    assert [trial.number for trial in second.trials] == [1, 2, 3, 4]
    assert len(after) == 4  # no setting was drawn twice
    assert {key: after[key] for key in before} == before


def test_test_rows_take_no_part(tmp_path: Path, config: Config) -> None:
    """Other test labels and features give the same scores, to the last digit."""
    write_forest(tmp_path, config)
    path = table_path(tmp_path, config)
    job = {"projections": str(path), "config": config.model_dump(mode="json")}
    point = {"max_depth": 3, "n_estimators": 5, "min_samples_leaf": 1, "features": "residuals"}
    (before,) = cross_validate(point, job)
    table = pd.read_parquet(path)
    test = table.split == "test"
    table.loc[test, "label"] = 1 - table.loc[test, "label"]
    table.loc[test, "residual_l2"] = np.nan
    table.to_parquet(path)
    assert cross_validate(point, job) == [before]
    table.loc[~test, "residual_l2"] = -(table.loc[~test, "residual_l2"] ** 2)
    table.to_parquet(path)
    assert cross_validate(point, job) != [before]  # training rows do


def test_random_search_draws_ahead(config: Config, tmp_path: Path) -> None:
    """A longer random search begins like a shorter one, so that it can go on with it; all within the space, none twice."""
    space = {"max_depth": [2, 9], "n_estimators": [10, 400], "min_samples_leaf": [1, 9]}
    path = write_forest(tmp_path, config, search="random", trials=5, space=space)
    (short, *_), (long, *_) = load_sweep(path), load_sweep(path, ["trials=12"])
    few, many = points(short), points(long)
    assert few is not None
    assert many is not None
    assert (len(few), many[:5]) == (5, few)
    assert len({tuple(point.values()) for point in many}) == len(many) == 12
    assert all(2 <= point["max_depth"] <= 9 and 10 <= point["n_estimators"] <= 400 for point in many)


def test_no_projections_is_an_error_for_people(tmp_path: Path, config: Config) -> None:
    path = write_forest(tmp_path, config)
    table_path(tmp_path, config).unlink()
    with pytest.raises(UserError, match=r"not projected yet .* `normscape run CONFIG --to project`"):
        run(path)


def test_best_is_among_those_that_went_to_the_end() -> None:
    """A trial that was stopped early may have had a higher score then: it does not compare."""
    ended = [Trial(n, {"x": n}, status="finished", reports=[{"step": 4, "score": s}]) for n, s in ((1, 0.4), (2, 0.6), (3, 0.6))]
    stopped = Trial(4, {"x": 4}, status="stopped", reports=[{"step": 1, "score": 0.9}])
    failed = Trial(5, {"x": 5}, status="failed", reports=[{"step": 4, "score": 1.0}])
    best = best_trial([*ended, stopped, failed])
    assert best is ended[1]
    assert best_trial([stopped, failed]) is stopped
    assert best_trial([failed]) is None


def test_the_scheduler_remembers_what_was_reported_before() -> None:
    """After a restart a poor trial is stopped at once, because the good ones before it are known."""
    known = [
        Trial(n, {"x": n}, status="finished", reports=[{"step": 1, "score": 0.9}, {"step": 2, "score": 0.9}]) for n in range(4)
    ]
    search = Search(
        trial=cross_validate, job={}, space={}, final_step=2, winner=dict, score_name="", cuts=Cuts(first=1, reduction=2.0)
    )
    for done, action in ((known, "STOP"), ([], "CONTINUE")):
        scheduler = _scheduler(search, done)
        assert scheduler is not None
        newcomer = SimpleNamespace(trial_id="new")
        scheduler.on_trial_add(None, newcomer)
        assert scheduler.on_trial_result(None, newcomer, {"step": 1, "score": 0.1}) == action


def test_reason_is_the_error_without_its_trace() -> None:
    trace = "Failure # 1\nray::ImplicitFunc.train()\n  File x, line 1\nnormscape.errors.DataError: a table\n  is broken\n"
    assert Trial(1, {}, error=trace).reason == "normscape.errors.DataError: a table is broken"
    assert Trial(1, {}, error="The actor died.").reason == "The actor died."


# ---- thresholds, and a kill ------------------------------------------------------------------------------------------


def write_thresholds(folder: Path) -> Path:
    """A tiny experiment on rendered chairs, and a thresholds sweep with a warm-up that its trials share."""
    auxiliary = {"width": 4, "stem_stride": 1, "epochs": 1, "batch_size": 32}
    experiment = {
        "base": str(ROOT / "configs" / "chairs" / "demo.yaml"),
        "name": "tiny",
        "device": "cpu",
        "image_size": 8,
        "data": {"angle_step_degrees": 29.0, "supersample": 1},
        "attributes": [
            {"name": "identity", "latent_dim": 8, "output_dim": 8, "auxiliary": auxiliary},
            {"name": "angle", "latent_dim": 8, "auxiliary": auxiliary},
        ],
        "other_dim": 4,
        "generator": {"channels": [8, 8], "mapping_layers": 2},
        "discriminator": {"channels": [8, 8]},
        "projection": {"start": "mean"},
    }
    sweep = {
        "kind": "thresholds",
        "name": "tiny-thresholds",
        "experiment": "tiny.yaml",
        "trials": 3,
        "steps": 8,
        "report_every": 4,
        "first_cut": 4,
        "gan": {"batch_size": 8, "warmup_steps": 4, "reconstruction_weight": 10.0, "quality_samples": 64, "log_interval": 4},
        "measure_images": 16,
        "distance_pairs": 64,
        "max_concurrent": 1,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(experiment))
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def start_job(path: Path) -> subprocess.Popen[str]:
    """`jobs/sweep.py` on a sweep file, as a process of its own."""
    folder = path.parent
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    environment |= {
        "NORMSCAPE_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(ROOT / "platform"),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(ROOT / "jobs" / "sweep.py"), "--config", str(path), "--runs-dir", str(folder / "runs")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.cluster
def test_killed_forest_sweep_goes_on(tmp_path: Path, config: Config) -> None:
    """SIGKILL of the driver after its first trial: run again, it keeps what ended and gives what an undisturbed sweep gives."""
    space = SPACE | {"max_depth": [2, 3, 4, 5], "n_estimators": [200]}
    path = write_forest(tmp_path, config, space=space, max_concurrent=1)
    sweep, loaded, _ = load_sweep(path)
    folder = sweep_folder(sweep, loaded, tmp_path / "runs")
    process = start_job(path)
    deadline = time.monotonic() + 600
    while not any(trial.status == "finished" for trial in read_trials(folder)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    ended = {trial.key for trial in read_trials(folder) if trial.status == "finished"}
    assert 1 <= len(ended) < 8
    assert not (folder / "sweep.json").exists()
    texts = {key: text for key, text in records(folder).items() if key in ended}

    process = start_job(path)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert f"{len(ended)} of 8 trials are done already" in err
    assert "best.yaml" in out
    assert {key: text for key, text in records(folder).items() if key in ended} == texts
    after = read_trials(folder)
    assert [trial.status for trial in after] == ["finished"] * 8
    job = {"projections": str(table_path(tmp_path, config)), "config": config.model_dump(mode="json")}
    for trial in after:
        assert trial.reports[-1]["score"] == cross_validate(trial.point, job)[0]["score"]

    parent, children = recorded(tmp_path, "toy")
    assert parent.info.status == "FINISHED"
    assert len(children) == 8
    assert {r.info.status for r in children} == {"FINISHED"}


@pytest.mark.cluster
def test_killed_thresholds_sweep_goes_on(tmp_path: Path) -> None:
    """SIGKILL of the driver after its first trial: run again, it keeps that trial, ends the others, and records nothing twice."""
    path = write_thresholds(tmp_path)
    sweep, config, _ = load_sweep(path)
    folder = sweep_folder(sweep, config, tmp_path / "runs")
    process = start_job(path)
    deadline = time.monotonic() + 900
    while not any(trial.status in ("finished", "stopped") for trial in read_trials(folder)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    before = read_trials(folder)
    ended = {trial.key for trial in before if trial.status in ("finished", "stopped")}
    assert 1 <= len(ended) < 3
    assert not (folder / "sweep.json").exists()
    texts = {key: text for key, text in records(folder).items() if key in ended}
    warm = {p: p.stat().st_mtime_ns for p in (folder / "warmup").rglob("*.safetensors")}

    process = start_job(path)
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    assert f"{len(ended)} of 3 trials are done already" in err
    assert "best.yaml" in out
    after = {trial.key: trial for trial in read_trials(folder)}
    assert len(after) == 3
    assert {key: text for key, text in records(folder).items() if key in ended} == texts
    assert {p: p.stat().st_mtime_ns for p in (folder / "warmup").rglob("*.safetensors")} == warm
    assert [trial.origin for trial in sorted(after.values(), key=lambda t: t.number)] == ["guess", "experiment", "search"]
    for trial in after.values():
        assert [report["step"] for report in trial.reports] == [4.0, 8.0][: len(trial.reports)]
        assert trial.status == ("finished" if len(trial.reports) == 2 else "stopped")
        assert {"control/identity", "leak/angle", "frechet"} <= set(trial.reports[0])

    best = load_config(folder / "best.yaml")
    winner = best_trial(list(after.values()))
    assert winner is not None
    assert best.attributes[0].tau_same == pytest.approx(winner.point["identity.tau_same"], abs=1e-4)
    assert best.gan == config.gan  # the shortened training is the sweep's, not the winner's
    assert (folder / "index.html").exists()

    parent, children = recorded(tmp_path, "tiny")
    assert parent.info.status == "FINISHED"
    assert len(children) == 3
    assert {r.info.status for r in children} == {"FINISHED"}
    client = open_client(store(tmp_path))
    for child in children:
        steps = [metric.step for metric in client.get_metric_history(child.info.run_id, "score")]
        assert steps == [int(report["step"]) for report in after[child.data.tags["normscape.trial"]].reports]
