"""Mistakes at the command line: exit code 2, one message that names the place, no stack trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

Command = Callable[..., tuple[int, str]]


def check(result: tuple[int, str], *expected: str) -> None:
    """Exit code 2, all the words, no stack trace."""
    code, text = result
    assert code == 2, text
    assert "Traceback" not in text
    for words in expected:
        assert words in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("gan.batchsize=8", "gan.batchsize: unknown key; did you mean `batch_size`?"),
        ("attributes.angle.tau_sam=0.1", "attributes.angle.tau_sam: unknown key; did you mean `tau_same`?"),
        ("gan.batch_size=6", "gan.batch_size: must be a multiple of 2^N = 4 for N = 2 attributes, found 6"),
        ("generator.channels=[8, 8, 8]", "generator.channels: image_size 8 needs 2 entries (for sides 4, 8), found 3"),
        ("discriminator.channels=[8]", "discriminator.channels: image_size 8 needs 2 entries (for sides 4, 8), found 1"),
        ("attributes.angle.tau_same=0.5", "attributes.angle.tau_same: must not exceed tau_different (0.15); found 0.5"),
        ("attributes.identity.tau_different=1.5", "attributes.identity.tau_different: must be"),
        ("attributes.identity.tau_same=-0.1", "attributes.identity.tau_same: must be"),
    ],
)
def test_a_wrong_configuration(command: Command, tiny_yaml: Path, tmp_path: Path, change: str, message: str) -> None:
    check(command("run", tiny_yaml, "--no-track", "--runs-dir", tmp_path, "--set", change), message)
    assert not list(tmp_path.iterdir())


def test_all_problems_are_named_at_once(command: Command, tiny_yaml: Path, tmp_path: Path) -> None:
    changes = (
        "gan.stps=3",
        "gan.batch_size=30",
        "discriminator.deviation_group=3",
        "generator.channels=[8]",
        "attributes.angle.tau_same=2",
    )
    options = [word for change in changes for word in ("--set", change)]
    places = ("gan.stps:", "gan.batch_size:", "generator.channels:", "attributes.angle.tau_same:")
    check(command("run", tiny_yaml, "--no-track", "--runs-dir", tmp_path, *options), "4 problems", *places)


def write_rc49(path: Path, types: int) -> None:
    """A whole file in RC-49's format, two angles a type."""
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros((2 * types, 3, 8, 8), np.uint8)
        file["labels"] = np.tile(np.array([10.0, 50.0], np.float32), types)
        file["types"] = np.repeat(np.arange(types), 2)
        file["indx_train"] = np.arange(2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "truncated"),
        ("no labels", "no dataset 'labels'"),
        ("NaN", "labels: expected finite numbers, found nan in row 3"),
        ("few types", "the split asks 40 training + 9 test subjects, the data has 48"),
        ("missing", "no such file"),
    ],
)
def test_a_wrong_rc49_file(command: Command, tiny_yaml: Path, tmp_path: Path, damage: str, message: str) -> None:
    path = tmp_path / "rc49.h5"
    if damage != "missing":
        write_rc49(path, 48 if damage == "few types" else 49)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif damage in ("no labels", "NaN"):
        with h5py.File(path, "r+") as file:
            if damage == "NaN":
                file["labels"][3] = np.nan
            else:
                del file["labels"]
    source = ["--set", "data.source=rc49", "--set", f"data.path={path}"]
    result = command("run", tiny_yaml, "--no-track", "--runs-dir", tmp_path / "runs", *source)
    check(result, message, str(path))
    assert not list((tmp_path / "runs" / "tiny").glob("prepare-????????"))
