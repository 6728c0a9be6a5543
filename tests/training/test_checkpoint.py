"""Checkpoints: whole, refused when they do not fit, and never more than two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from normscape.errors import CheckpointError
from normscape.training.checkpoint import TrainingState, load_module, save_module


def make(digest: str = "d", width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer, TrainingState]:
    """A network after one step of Adam, and its state."""
    torch.manual_seed(0)
    net = nn.Linear(width, 2)
    adam = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.ones(1, width)).sum().backward()
    adam.step()
    return net, adam, TrainingState(digest, {"net": net}, {"adam": adam})


def test_restores_weights_optimiser_and_step(tmp_path: Path) -> None:
    """The next step after a restore is the one that would have come."""
    net, adam, state = make()
    state.save(tmp_path, 1)
    adam.step()
    expected = net.weight.detach().clone()
    fresh, fresh_adam, fresh_state = make()
    nn.init.zeros_(fresh.weight)
    assert fresh_state.load_latest(tmp_path) == 1
    fresh_adam.step()
    torch.testing.assert_close(fresh.weight, expected, rtol=0, atol=0)


def test_an_empty_folder_starts_from_zero(tmp_path: Path) -> None:
    """No checkpoint is no error."""
    assert make()[2].load_latest(tmp_path) == 0


def test_only_the_last_two_stay_and_half_written_ones_do_not_count(tmp_path: Path) -> None:
    """A folder that a killed process left is neither loaded nor in the way."""
    state = make()[2]
    for step in (1, 2, 3):
        state.save(tmp_path, step)
    (tmp_path / "checkpoint-00000009.tmp").mkdir()
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".tmp") == ["checkpoint-00000002", "checkpoint-00000003"]
    assert state.load_latest(tmp_path) == 3


def test_clearing_leaves_nothing(tmp_path: Path) -> None:
    """Neither checkpoints nor what a killed process left."""
    state = make()[2]
    for step in (1, 2):
        state.save(tmp_path, step)
    (tmp_path / "checkpoint-00000009.tmp").mkdir()
    TrainingState.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_a_damaged_checkpoint_is_named(name: str, tmp_path: Path) -> None:
    """A truncated file gives an error with the folder and what to do."""
    state = make()[2]
    state.save(tmp_path, 5)
    path = tmp_path / "checkpoint-00000005" / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match=r"checkpoint-00000005: damaged.*remove this folder"):
        state.load_latest(tmp_path)


def test_other_configuration_and_other_shape_are_refused(tmp_path: Path) -> None:
    """Another digest, and the same digest with another network."""
    make()[2].save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="another configuration"):
        make(digest="e")[2].load_latest(tmp_path)
    with pytest.raises(CheckpointError, match="does not fit"):
        make(width=4)[2].load_latest(tmp_path)


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    """Missing, damaged and misfitting weight files."""
    path = tmp_path / "net.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        load_module(nn.Linear(2, 2), path)
    save_module(nn.Linear(2, 2), path)
    load_module(nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match="another network"):
        load_module(nn.Linear(3, 2), path)
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        load_module(nn.Linear(2, 2), path)
