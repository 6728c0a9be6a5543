"""Damaged or foreign files among a run's own, and a full disk: exit code 2, one message, finished work kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from normscape.stages.core import stage_keys
from normscape.stages.files import write_json

pytestmark = pytest.mark.slow
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def run(calm_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(calm_run, tmp_path / "runs" / "tiny"))


def check(result: tuple[int, str], *expected: str) -> None:
    """Exit code 2, all the words, no stack trace."""
    code, text = result
    assert code == 2, text
    assert "Traceback" not in text
    for words in expected:
        assert words in text


@pytest.mark.parametrize(
    ("stage", "file", "reader"),
    [
        ("auxiliary", "identity.safetensors", "controllers"),
        ("gan", "generator.safetensors", "controllers"),
        ("controllers", "angle.safetensors", "project"),
        ("latents", "style_space.safetensors", "project"),
        ("network", "network.safetensors", "project"),
        ("project", "projections.parquet", "score"),
    ],
)
@pytest.mark.parametrize("damage", ["truncated", "absent"])
def test_a_damaged_result_of_an_earlier_stage(
    command: Command, tiny_yaml: Path, run: Path, stage: str, file: str, reader: str, damage: str
) -> None:
    """The message names the file, and, for weights, the stage to run again; running it again mends the run."""
    (path,) = run.glob(f"{stage}-????????/{file}")
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    arguments = ["run", tiny_yaml, "--no-track", "--runs-dir", run.parent, "--to", reader]
    result = command(*arguments, "--from", reader)
    check(result, str(path))
    if path.suffix == ".safetensors":
        check(result, f"run again with `--from {stage}` to make it anew")


@pytest.fixture
def cut_off(run: Path, tiny_yaml: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The partial folder of a GAN training that was cut off after two checkpoints."""
    from normscape.training import gan

    real, calls = gan.GanTrainer.step, []

    def step(*arguments):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(gan.GanTrainer, "step", step)
        code, text = command("run", tiny_yaml, "--no-track", "--runs-dir", run.parent, "--from", "gan")
    assert code == 130, text
    (partial,) = run.glob("gan-*.partial")
    assert len(list(partial.glob("checkpoint-*"))) == 2
    return partial


def test_a_checkpoint_of_another_configuration(command: Command, tiny_yaml: Path, run: Path, cut_off: Path) -> None:
    state = cut_off / "checkpoint-00000016" / "state.json"
    write_json(state, json.loads(state.read_text()) | {"digest": "0" * 64})
    result = command("run", tiny_yaml, "--no-track", "--runs-dir", run.parent, "--to", "gan")
    check(result, f"{state.parent}: belongs to another configuration")
    assert list(run.glob("auxiliary-????????/manifest.json"))


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_damaged_checkpoint(command: Command, tiny_yaml: Path, run: Path, cut_off: Path, name: str) -> None:
    """Removing what the message names lets the run go on from the checkpoint before."""
    path = cut_off / "checkpoint-00000016"
    with (path / name).open("r+b") as file:
        file.truncate(100)
    arguments = ["run", tiny_yaml, "--no-track", "--runs-dir", run.parent, "--to", "gan"]
    check(command(*arguments), f"{path}: damaged checkpoint", "remove this folder")
    shutil.rmtree(path)
    code, text = command(*arguments)
    assert code == 0, text
    assert "gan: goes on where it was cut off" in text


@pytest.mark.disk("2m")
@pytest.mark.parametrize("stage", ["auxiliary", "gan", "controllers", "latents", "network", "project", "score"])
def test_a_full_disk(command: Command, tiny_yaml: Path, calm_run: Path, small_disk: Path, stage: str) -> None:
    """What was finished before is kept, and the run goes on when there is space."""
    run = small_disk / "tiny"
    names = [name for name in stage_keys_of(tiny_yaml) if name != "report"]
    run.mkdir()
    for name in names[: names.index(stage)]:
        for folder in calm_run.glob(f"{name}-????????"):
            keep = shutil.ignore_patterns("*.png", "sweep.npy", "scatter.parquet", "distances.parquet")
            shutil.copytree(folder, run / folder.name, ignore=keep)
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(bytes(max(0, free - 24 * 1024)))
    arguments = ["run", tiny_yaml, "--no-track", "--runs-dir", small_disk, "--to", stage]
    check(command(*arguments), "disk is full at", "finished work is kept; free some space and run again")
    kept = {path.parent.name.split("-")[0] for path in run.glob("*-????????/manifest.json")}
    assert kept == set(names[: names.index(stage)])


def stage_keys_of(config: Path) -> dict[str, str]:
    """Stages of a configuration, in order."""
    from normscape.configio import load_config

    return stage_keys(load_config(config))
