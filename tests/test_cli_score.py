"""`normscape score` from the command line, with random networks: a scan in, a page out, and every mistake one message."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch

from normscape.benchmark.untrained import untrained_inputs
from normscape.cli import main
from normscape.config import Config
from normscape.configio import dump_yaml
from normscape.datasets.simulated import simulate_cohort
from normscape.stages import network, normals, project, score
from normscape.stages.core import StageContext, folder_name, stage_keys
from normscape.stages.system_files import write_package
from normscape.tracking.store import open_client
from normscape.training.recorder import SilentRecorder

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `normscape score`; exit code, stdout, stderr."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        try:
            main(["score", *map(str, arguments)])
            code: Any = 0
        except SystemExit as ended:
            code = ended.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """What makes the toy experiment one on the simulated cohort at 4 mm."""
    return {
        "data": {"spacing_mm": 4.0, "simulated_subjects": 7, "patches_per_subject": 24},
        "projection": {"train_samples": 32, "test_samples": 16, "calibration_samples": 16, "steps": 2, "batch_size": 16},
        "network": {"images": 64, "width": 8},
        "scoring": {"max_depth": [3], "n_estimators": [10], "folds": 2, "bootstrap_samples": 20},
        "brains": {"stride": 6, "batch_size": 64},
    }


@pytest.fixture
def run_folder(
    tmp_path: Path, toy_brain_config: Callable[..., Config], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run that is finished up to `score`."""
    monkeypatch.setenv("NORMSCAPE_CACHE", str(tmp_path / "cache"))
    config = toy_brain_config(**settings)
    folder, keys = tmp_path / "runs" / config.name, stage_keys(config)
    made = untrained_inputs(config, folder)
    inputs: dict[str, Path] = {}
    for name in ("prepare", "auxiliary", "gan", "controllers", "latents", "normals", "network", "project", "score"):
        inputs[name] = folder / folder_name(name, keys[name])
        if name in made:
            os.rename(made[name], inputs[name])
        else:
            inputs[name].mkdir()
            run = {"normals": normals, "network": network, "project": project, "score": score}[name].run
            run(StageContext(config, inputs[name], inputs, torch.device("cpu"), SilentRecorder()))
        (inputs[name] / "manifest.json").write_text(json.dumps({"stage": name, "key": keys[name], "metrics": {}}))
    (folder / "config.yaml").write_text(dump_yaml(config))
    return folder


@pytest.mark.slow
def test_a_scan_from_file_to_page(
    command: Command,
    run_folder: Path,
    tmp_path: Path,
    toy_config: Callable[..., Config],
    toy_brain_config: Callable[..., Config],
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stripped scan with its head turned: all files are there, on its grid. Then what can be wrong, each with exit code 2.
    Last, the system as MLflow's registry hands it out: it scores as the run does."""
    simulate_cohort(tmp_path / "cohort", subjects=1, seed=9, spacing_mm=4.0)
    scan = next((tmp_path / "cohort" / "t1").iterdir())
    out = tmp_path / "out"
    code, text, err = command(scan, "--age", 63, "--sex", "F", "--run", run_folder, "--strip", "none", "--out", out, "--quiet")
    assert (code, err) == (0, ""), err
    assert f"page  {out / 'index.html'}" in text
    assert "note: The model learned from: simulated cohort." in text
    assert "by its rank among all patches of this scan and of 1 healthy subject." in text
    [said] = json.loads((out / "summary.json").read_text())["p_values"]
    assert 0 < said["p"] <= 1
    assert "have a p of at most 5%" in (out / "index.html").read_text(encoding="utf-8")
    names = {path.name for path in out.iterdir()}
    maps = {f"{kind}_map.nii.gz" for kind in ("anomaly", "score", "excess", "residual", "gradient")}
    assert names == maps | {"regions.csv", "overlay.png", "index.html", "summary.json", "preprocessed"}
    found, given = (sitk.ReadImage(str(path)) for path in (out / "anomaly_map.nii.gz", scan))
    assert (found.GetSize(), found.GetSpacing()) == (given.GetSize(), given.GetSpacing())
    assert 0 < sitk.GetArrayFromImage(found).max() <= 1
    assert json.loads((out / "summary.json").read_text())["age_years"] == 63

    good = [scan, "--run", run_folder, "--strip", "none", "--out", out, "--quiet"]
    elsewhere = [*good[:-2], tmp_path / "unknown", "--quiet"]
    code, text, err = command(*elsewhere, "--age", "unknown")
    assert (code, "years was read from the scan by the age network" in text) == (0, True), err
    chairs = tmp_path / "runs" / "chairs"
    chairs.mkdir()
    (chairs / "config.yaml").write_text(dump_yaml(toy_config()))
    text_file = tmp_path / "notes.txt"
    text_file.write_text("no scan")
    mistakes: list[tuple[list[Any], str]] = [
        ([*good], "the age is not known"),
        ([*good, "--age", "old"], "--age old: expected years as a number"),
        ([*good, "--age", "-3"], "expected years above 0"),
        ([*good, "--age", 63, "--model", "models:/a@b"], "give one of --run FOLDER and --model"),
        ([*good, "--age", 63, "--mask", tmp_path / "gone.nii.gz"], "gone.nii.gz: no such file"),
        ([tmp_path / "gone.nii.gz", *good[1:], "--age", 63], "gone.nii.gz: no such file"),
        ([text_file, *good[1:], "--age", 63], "expected a NIfTI file"),
        ([scan, "--age", 63], "give one of --run FOLDER and --model"),
        ([scan, "--age", 63, "--run", tmp_path / "runs" / "nothing"], "no run folder"),
        ([scan, "--age", 63, "--run", chairs], "a model of chairs, not of brains"),
        ([scan, "--age", 63, "--model", "brain"], "expected models:/NAME@ALIAS"),
    ]
    for arguments, message in mistakes:
        code, _, err = command(*arguments)
        assert (code, message in err, "Traceback" in err) == (2, True, False), (arguments, err)

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    arguments = [scan, "--age", 63, "--strip", "none", "--quiet"]
    code, _, err = command(*arguments, "--model", "models:/nothing@champion")
    assert (code, "nothing" in err, "Traceback" in err) == (2, True, False)
    folders = {path.name.rpartition("-")[0]: path for path in run_folder.iterdir() if path.is_dir()}
    write_package(toy_brain_config(**settings), folders, tmp_path / "logged" / "artifacts" / "system")
    client = open_client(store)
    client.create_registered_model("toy")
    version = client.create_model_version("toy", (tmp_path / "logged").as_uri())
    client.set_registered_model_alias("toy", "champion", version.version)
    code, _, err = command(*arguments, "--model", "models:/toy@champion", "--out", tmp_path / "again")
    assert code == 0, err
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in (out, tmp_path / "again"))
    assert first["peak_score"] == second["peak_score"]
    assert first["p_values"] == second["p_values"]
    code, text, err = command(scan, "--age", 63, "--strip", "none", "--run", run_folder, "--steps", 1, "--quiet")
    assert (code, "p = " in text) == (0, False), err  # healthy patches were projected with other steps
