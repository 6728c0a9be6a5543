"""Joining a cluster: errors for people, a token for its owner only, and nothing ended that was not started here."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest
import ray

from normscape.distributed.cluster import check_runs_folder, connect, job_id, secure_token
from normscape.errors import UserError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and no token in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_for_its_owner_alone_and_kept(home: Path) -> None:
    """0600 from the first moment; one that is there stays as it is, but for bits that let others read it."""
    secure_token()
    path = home / ".ray" / "auth_token"
    made = path.read_text()
    assert len(made) == 64
    assert mode(path) == 0o600
    path.chmod(0o644)
    secure_token()
    assert path.read_text() == made
    assert mode(path) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["auth_token"]


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_TOKEN", "t"), ("RAY_AUTH_TOKEN_PATH", "/f"), ("RAY_AUTH_MODE", "disabled")]
)
def test_a_token_of_the_environment_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """No file is written where the environment says what holds."""
    monkeypatch.setenv(name, value)
    secure_token()
    assert not (home / ".ray").exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "cannot join the Ray cluster at 127.0.0.1:1: .*refused"),
        ("ray://127.0.0.1:10001", "give the address of the cluster's head as host:port"),
        ("http://127.0.0.1:8265", "give the address of the cluster's head as host:port"),
        ("nonsense", "cannot join the Ray cluster at nonsense"),
    ],
)
def test_a_cluster_that_is_not_there_is_a_persons_error(home: Path, address: str, message: str) -> None:
    """At once, and not after minutes of trying."""
    if ray.is_initialized():
        pytest.skip("this process is connected already")
    began = time.monotonic()
    with pytest.raises(UserError, match=message), connect(address):
        pass
    assert time.monotonic() - began < 30
    assert not ray.is_initialized()


def test_results_must_outlive_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative runs folder is refused inside a job that has a copy of its working directory, and only there."""
    check_runs_folder(Path("runs"))
    settings = {"runtime_env": {"working_dir": "gcs://x.zip"}, "metadata": {"job_submission_id": "raysubmit_1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(settings))
    with pytest.raises(UserError, match="--runs-dir runs: a job works in a copy"):
        check_runs_folder(Path("runs"))
    check_runs_folder(Path("/shared/runs"))
    assert job_id(own=True) == "raysubmit_1"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {}}))
    check_runs_folder(Path("runs"))
    assert job_id(own=True) is None


@pytest.mark.cluster
def test_a_connection_that_is_there_is_used_and_left(local_ray: None) -> None:
    """No second Ray is started, and the first one lives on after an inner connection."""
    with connect("local") as own:
        assert not own
        assert ray.cluster_resources()["CPU"] == 4
    assert ray.is_initialized()
