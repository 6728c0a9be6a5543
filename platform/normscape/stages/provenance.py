"""Which code made a result, and on which device."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import normscape
from normscape.errors import UserError

if TYPE_CHECKING:
    import torch


@cache
def code_version() -> str:
    """Git commit of the checkout that this package lies in, with `-dirty` when it was changed since; else the version."""
    here = Path(__file__).resolve().parent
    try:
        # A site-packages folder inside of somebody else's checkout is not ours: this file must be tracked.
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        commit = _git(here, "rev-parse", "HEAD")
        return f"{commit}-dirty" if _git(here, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return normscape.__version__


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that a configuration asks for.

    Raises:
        UserError: `cuda` is asked for and there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("device: cuda is asked for, but torch finds no GPU; use `--set device=auto`, or see `normscape doctor`")
    return torch.device("cuda" if wanted != "cpu" and available else "cpu")
