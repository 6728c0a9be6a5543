"""What a detector does wrong is its own failure: it is written down with its reason, and the others go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscape.errors import DataError, UserError
from normscape.stages.files import is_disk_full


class DetectorFailed(Exception):
    """A detector raised, or gave what is no score; the text says when and why."""


@contextmanager
def blamed(when: str, folder: Path) -> Iterator[None]:
    """What goes wrong in here is the detector's failure.

    Args:
        when: for the reason.
        folder: results go there; a full disk is nobody's failure.

    Raises:
        DetectorFailed: with a line of reason; the error itself is its cause.
        UserError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        if is_disk_full(error, folder):
            raise UserError(f"disk is full at {folder}; finished units are kept; free some space and run again") from error
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise DetectorFailed(f"{when}: {kind}{error}") from error


def checked_scores(found: Any, count: int) -> NDArray[np.float64]:
    """Scores as they must be: finite, (count,).

    Raises:
        DataError: they are not.
    """
    score = np.asarray(found, dtype=np.float64)
    if score.shape != (count,):
        raise DataError(f"decision_function gave scores of shape {score.shape}, expected ({count},)")
    if not np.isfinite(score).all():
        raise DataError(f"decision_function gave {int((~np.isfinite(score)).sum())} of {count} scores that are not finite")
    return score


def checked_map(found: Any, images: Tensor) -> Tensor | None:
    """An anomaly map as it must be: finite, float32 (B, 1, *S), on the CPU; None stays None.

    Raises:
        DataError: it is not.
    """
    if found is None:
        return None
    expected = (len(images), 1, *images.shape[2:])
    if tuple(found.shape) != expected:
        raise DataError(f"anomaly_map gave a map of shape {tuple(found.shape)}, expected {expected}")
    found = found.detach().float().cpu()
    if not bool(torch.isfinite(found).all()):
        raise DataError("anomaly_map gave values that are not finite")
    return found
