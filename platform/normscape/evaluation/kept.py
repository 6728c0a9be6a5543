"""Projected images that are kept on the disk: detectors and seeds that project the same images in the same way do it once."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

Arrays = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Kept:
    """A folder of results, each under a digest of what it was made of: images, masks, conditions, and how.

    Attributes:
        folder: may be shared by processes, and be removed at any time.
        context: what else a result depends on: networks, settings, code.
    """

    folder: Path
    context: str

    def path(self, images: Tensor, masks: Tensor | None, conditions: Mapping[str, Tensor]) -> Path:
        """Where the result for these images is, or would be."""
        found = hashlib.blake2b(self.context.encode(), digest_size=16)
        for name, tensor in (("images", images), ("masks", masks), *sorted(conditions.items())):
            found.update(f"{name}{None if tensor is None else tuple(tensor.shape)}".encode())
            if tensor is not None:
                found.update(tensor.contiguous().cpu().numpy().tobytes())
        return self.folder / f"{found.hexdigest()}.safetensors"

    @staticmethod
    def read(path: Path) -> Arrays | None:
        """What was kept; None where there is nothing, or nothing that can be read."""
        try:
            return load_file(path) if path.exists() else None
        except (OSError, SafetensorError):
            return None

    def write(self, path: Path, arrays: Arrays) -> None:
        """Keep a result; two processes that do so at once leave one of the two, which are equal."""
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, aside)
        os.replace(aside, path)
