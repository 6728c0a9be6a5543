"""What another process needs to see the same files as the driver."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from normscape.config import Config

_ENVIRONMENT = ("NORMSCAPE_CACHE",)
"""Where data are looked for: other processes see what the driver sees, whenever Ray was started."""


def with_absolute_paths(config: Config) -> Config:
    """The same experiment for a process in another folder."""
    changes: dict[str, Any] = {"data": config.data.with_absolute_paths()}
    if config.projection.perceptual_path is not None:
        path = config.projection.perceptual_path.resolve()
        changes["projection"] = config.projection.model_copy(update={"perceptual_path": path})
    return config.model_copy(update=changes)


def shared_environment() -> dict[str, str]:
    """Environment variables that other processes are to have."""
    return {name: str(Path(os.environ[name]).resolve()) for name in _ENVIRONMENT if os.environ.get(name)}
