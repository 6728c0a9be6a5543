"""Checkpoints as open files: tensors in safetensors, everything else in JSON; no pickle.

A checkpoint is a folder that appears under its final name only when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from normscape.errors import CheckpointError

_PREFIX = "checkpoint-"
_KEEP = 2


def save_module(module: nn.Module, path: Path) -> None:
    """Write a network's weights, aside first and then under their name."""
    aside = path.with_name(path.name + ".tmp")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}, aside)
    os.replace(aside, path)


def load_module(module: nn.Module, path: Path) -> None:
    """Read a network's weights.

    Raises:
        CheckpointError: The file is missing, damaged, or made for another network.
    """
    try:
        module.load_state_dict(load_file(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; expected the weights of {type(module).__name__}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    except RuntimeError as error:
        raise CheckpointError(f"{path}: holds weights of another network than the configuration describes\n{error}") from error


class TrainingState:
    """Everything a training loop must keep to go on as if it had never stopped.

    Args:
        digest: identifies the configuration; a checkpoint of another one is refused.
        modules: networks by name.
        optimizers: optimisers by name.
        tensors: further tensors by name, updated in place.
    """

    def __init__(
        self,
        digest: str,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.digest, self.modules, self.optimizers, self.tensors = digest, modules, optimizers, tensors or {}

    def save(self, folder: Path, step: int) -> None:
        """Write `checkpoint-<step>` into the folder and drop all but the last two."""
        flat: dict[str, Tensor] = {f"tensor/{name}": tensor for name, tensor in self.tensors.items()}
        plain: dict[str, Any] = {"step": step, "digest": self.digest, "optimizers": {}}
        for name, module in self.modules.items():
            flat |= {f"module/{name}/{key}": tensor for key, tensor in module.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            state = optimizer.state_dict()
            plain["optimizers"][name] = state["param_groups"]
            for index, slots in state["state"].items():
                flat |= {f"optimizer/{name}/{index}/{slot}": value for slot, value in slots.items() if value is not None}
        final = folder / f"{_PREFIX}{step:08d}"
        aside = folder / f"{final.name}.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in flat.items()}, aside / "state.safetensors")
        (aside / "state.json").write_text(json.dumps(plain, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        for old in _finished(folder)[:-_KEEP]:
            _remove(old)

    def load_latest(self, folder: Path) -> int:
        """Restore the newest checkpoint of the folder.

        Returns:
            Its step, or 0 when there is none.

        Raises:
            CheckpointError: The checkpoint is damaged or belongs to another configuration.
        """
        found = _finished(folder)
        if not found:
            return 0
        path = found[-1]
        try:
            plain = json.loads((path / "state.json").read_text())
            flat = load_file(path / "state.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{path}: damaged checkpoint; remove this folder ({error})") from error
        if plain.get("digest") != self.digest:
            raise CheckpointError(
                f"{path}: belongs to another configuration; remove this folder, or run the configuration that made it "
                f"(digest found {str(plain.get('digest'))[:12]}, expected {self.digest[:12]})"
            )
        try:
            for name, module in self.modules.items():
                prefix = f"module/{name}/"
                module.load_state_dict({key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)})
            for name, optimizer in self.optimizers.items():
                slots: dict[int, dict[str, Tensor]] = {}
                for key, value in flat.items():
                    if key.startswith(f"optimizer/{name}/"):
                        index, slot = key.removeprefix(f"optimizer/{name}/").split("/")
                        slots.setdefault(int(index), {})[slot] = value
                optimizer.load_state_dict({"state": slots, "param_groups": plain["optimizers"][name]})
            for name, tensor in self.tensors.items():
                tensor.copy_(flat[f"tensor/{name}"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: does not fit the networks of this configuration ({error})") from error
        return int(plain["step"])

    @staticmethod
    def clear(folder: Path) -> None:
        """Remove the folder's checkpoints, when training has ended and its result is written."""
        for path in _finished(folder):
            _remove(path)
        for left in folder.glob(f"{_PREFIX}*.tmp"):
            shutil.rmtree(left)


def _remove(path: Path) -> None:
    """Remove a checkpoint; cut off in between, it leaves a `.tmp` folder that does not count, never half a checkpoint."""
    aside = path.with_name(path.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)
    shutil.rmtree(aside)


def _finished(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.suffix != ".tmp")
