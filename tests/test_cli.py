"""The command, as a person types it: exit codes, messages, and what is printed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import normscape
from normscape import cli
from normscape.configio import load_config, reference_markdown
from normscape.stages.core import STAGES

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "configs" / "chairs" / "demo.yaml"
QUICK = ["--set", "data.angle_step_degrees=40", "--set", "data.supersample=1", "--set", "device=cpu"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered once for all tests of this file."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path):
    """Runs `normscape ...` and gives (exit code, stdout, stderr)."""
    monkeypatch.setenv("NORMSCAPE_CACHE", str(cache))

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["normscape", *map(str, arguments)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        return int(str(code or 0)), out, err

    return run


# ---- looking


def test_version_and_help(command) -> None:
    assert command("--version") == (0, f"normscape {normscape.__version__}\n", "")
    code, out, _ = command("--help")
    assert code == 0
    for name in ("run", "status", "doctor", "config", "report"):
        assert name in out


def test_config_check_show_and_reference(command, tmp_path: Path) -> None:
    code, out, _ = command("config", "check", DEMO)
    assert (code, "fine; chairs-demo" in out) == (0, True)
    code, out, _ = command("config", "show", DEMO, "--set", "gan.steps=3")
    (tmp_path / "shown.yaml").write_text(out)
    assert load_config(tmp_path / "shown.yaml") == load_config(DEMO, ["gan.steps=3"])
    assert command("config", "reference")[1] == reference_markdown()
    command("config", "reference", "--output", tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == reference_markdown()


def test_doctor_never_fails_and_says_how_to_install_extras(command, tmp_path: Path) -> None:
    code, out, _ = command("doctor", "--runs-dir", tmp_path / "none" / "yet")
    assert code == 0
    for word in ("Python", "device", "cores", "memory", "disk", "cache folder", "torch", "efficientnet-lite-pytorch"):
        assert word in out
    if "missing" in out:
        assert "optional: pip install 'normscape[" in out


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nope.yaml"], "cannot read configuration nope.yaml"),
        (["run", str(DEMO), "--set", "gan.batch_size=30"], "gan.batch_size: must be a multiple of 2^N = 4"),
        (["config", "check", str(DEMO), "--set", "gan.stps=30"], "gan.stps: unknown key; did you mean `steps`?"),
        (["run", str(DEMO), "--from", "gam", "--no-track"], "--from gam: there is no such stage; did you mean `gan`?"),
        (["status", "nope"], "nope: neither a run nor a configuration"),
        (["report", str(DEMO), "--set", "name=never"], "not finished yet: prepare, auxiliary"),
        (["rum", str(DEMO)], "No such command"),
        (["run", str(DEMO), "--bogus"], "No such option"),
        (["run"], "Missing argument"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    command, tmp_path: Path, monkeypatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err


def test_cuda_without_a_gpu_is_a_user_error(command, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    code, _, err = command("run", DEMO, "--to", "prepare", "--no-track", "--runs-dir", tmp_path, *QUICK, "--set", "device=cuda")
    assert (code, "torch finds no GPU" in err) == (2, True)


# ---- running


def test_run_skips_what_is_done_and_status_tells(command, tmp_path: Path) -> None:
    arguments = ["run", DEMO, "--to", "prepare", "--no-track", "--runs-dir", tmp_path, *QUICK]
    code, out, err = command(*arguments)
    assert code == 0
    count = sum(not stage.source for stage in STAGES)  # those for one data source only do not exist for chairs
    assert f"1/{count} prepare: finished in" in err
    assert f"run folder  {tmp_path / 'chairs-demo'}" in out
    code, _, err = command(*arguments)
    assert f"1/{count} prepare: up to date" in err
    for named in (tmp_path / "chairs-demo", "chairs-demo"):
        code, out, _ = command("status", named, "--runs-dir", tmp_path)
        assert code == 0
        rows = {line.split("│")[1].strip(): line for line in out.splitlines() if "│" in line}
        assert "finished" in rows["prepare"]
        assert "train_subjects 40" in rows["prepare"]
        assert "waiting" in rows["gan"]


def test_quiet_says_only_what_finished(command, tmp_path: Path) -> None:
    _, _, err = command("run", DEMO, "--to", "prepare", "--no-track", "--quiet", "--runs-dir", tmp_path, *QUICK)
    assert [line.split(": ")[1].split()[0] for line in err.splitlines()] == ["finished"]


def test_a_recorded_run_is_named_at_the_end(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, out, _ = command("run", DEMO, "--to", "prepare", "--runs-dir", tmp_path, *QUICK)
    assert code == 0
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert f"in {store}" in out
    assert f"mlflow ui --backend-store-uri {store}" in out
    from mlflow import MlflowClient

    run_id = out.split("MLflow      run ")[1].split()[0]
    run = MlflowClient(store).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["prepare/train_subjects"] == 40.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_exits_130_and_goes_on_later(tmp_path: Path, number: signal.Signals) -> None:
    """In the middle of rendering: thousands of images that are not in the cache."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "platform"),
        "NORMSCAPE_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "normscape", "run", str(DEMO), "--to", "prepare", "--no-track", "--runs-dir", str(tmp_path)]
    command += ["--set", "data.angle_step_degrees=0.1", "--set", "device=cpu"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        give_up = time.monotonic() + 60
        while not list(tmp_path.glob("chairs-demo/prepare-*.partial/progress.json")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < give_up
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == f"stopped; finished work is kept; `normscape run {DEMO}` goes on from here"
    assert list(tmp_path.glob("chairs-demo/prepare-*.partial"))
