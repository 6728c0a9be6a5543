"""The entry point: arguments, exit codes, and the files it leaves."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from normscape.config import Config
from normscape.configio import dump_yaml

JOB = Path(__file__).resolve().parents[2] / "jobs" / "benchmark.py"


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the job's main with these arguments."""

    def run(*arguments: object) -> int:
        spec = importlib.util.spec_from_file_location("benchmark_job", JOB)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr("sys.argv", [str(JOB), *map(str, arguments)])
        result: int = module.main()
        return result

    return run


def test_a_configuration_becomes_a_table(
    job: Callable[..., int], toy_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two configurations, one case each: both are in the files, and progress stays out of the output."""
    paths = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    for path in paths:
        path.write_text(dump_yaml(toy_config(name=path.stem)), encoding="utf-8")
    flags = [flag for path in paths for flag in ("--config", path)]
    assert job(*flags, "--only", "contrastive", "--repeats", 1, "--device", "cpu", "--out", tmp_path / "out") == 0
    shown = capsys.readouterr()
    assert "contrastive loss" in shown.out
    assert shown.err.splitlines() == ["one: contrastive", "two: contrastive"]
    rows = json.loads((tmp_path / "out" / "benchmark.json").read_text())["rows"]
    assert [(row["config"], row["case"]) for row in rows[1::2]] == [("one", "contrastive loss"), ("two", "contrastive loss")]


def test_a_bad_configuration_is_one_message(job: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, the file is named, nothing is written."""
    assert job("--config", tmp_path / "absent.yaml", "--out", tmp_path / "out") == 2
    assert "absent.yaml" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_default_configurations_exist(job: Callable[..., int]) -> None:
    """What `make bench` runs without arguments."""
    root = JOB.parents[1]
    assert all((root / "configs" / name).exists() for name in ("chairs/cpu.yaml", "chairs/gpu.yaml", "brain/cpu.yaml"))
    with pytest.raises(SystemExit):
        job("--repeats", 0)


def test_recording_is_asked_for(
    job: Callable[..., int],
    toy_config: Callable[..., Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With --mlflow a run with ratios and files lies beside the folder; a machine without MLflow says so before it measures."""
    from normscape.tracking.store import open_client

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "one.yaml"
    path.write_text(dump_yaml(toy_config(name="one")), encoding="utf-8")
    arguments = ["--config", path, "--only", "contrastive", "--repeats", 1, "--out", tmp_path / "out", "--mlflow"]
    assert job(*arguments) == 0
    shown = capsys.readouterr().out
    client = open_client(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.get_run(shown.split()[-1])
    assert set(run.data.metrics) == {"one/contrastive loss: reference / fast"}
    assert sorted(file.path for file in client.list_artifacts(run.info.run_id)) == ["benchmark.json", "benchmark.md"]
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert job(*arguments) == 2
    told = capsys.readouterr().err
    assert told == "--mlflow: mlflow is not installed; install mlflow, or leave --mlflow out\n"
