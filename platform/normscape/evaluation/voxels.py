"""What a map says of one scan, against the anomaly that is in it."""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics import compute_dice
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve

TOP_ML = 1.0
"""A scan's score is the mean of so many of its most abnormal millilitres: about as large as a small lesion."""
FOUND_SHARE = 0.25
"""A lesion is found when at least this share of its voxels exceeds the threshold."""
LEAST_ML = 0.1
"""Connected parts above the threshold that are smaller are no false positives."""
VOXEL_FIELDS = ("voxel_auprc", "voxel_prevalence", "ceiling_dice")
RATE_FIELDS = ("dice", "lesions", "found", "false_positives", "flagged")
_CORNERS = np.ones((3, 3, 3))
"""Voxels that touch by a corner are connected."""


def top_mean(values: NDArray[np.float32], spacing_mm: float) -> float:
    """Mean of the most abnormal millilitre of the brain.

    Args:
        values: of the brain's voxels, (N,).
        spacing_mm: side of a voxel.
    """
    count = min(max(1, round(TOP_ML * 1000.0 / spacing_mm**3)), len(values))
    return float(np.partition(values, len(values) - count)[-count:].mean())


def against_truth(values: NDArray[np.float32], truth: NDArray[np.bool_]) -> dict[str, float]:
    """Average precision of the brain's voxels, their prevalence, and the Dice of the best threshold, which needs the truth.

    Args:
        values: of the brain's voxels, (N,).
        truth: which of them are anomalous, (N,); at least one.
    """
    precision, recall, _ = precision_recall_curve(truth, values)
    total = precision + recall
    dice = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return {
        "voxel_auprc": float(average_precision_score(truth, values)),
        "voxel_prevalence": float(truth.mean()),
        "ceiling_dice": float(dice.max()),
    }


def at_threshold(
    volume: NDArray[np.float32], truth: NDArray[np.bool_], brain: NDArray[np.bool_], threshold: float, spacing_mm: float
) -> dict[str, float | None]:
    """What lies above a threshold.

    Args:
        volume: the map, (Z, Y, X).
        truth: the anomaly, within the brain; empty for a scan as it is.
        brain: likewise.
        threshold: chosen on healthy validation.
        spacing_mm: side of a voxel.

    Returns:
        `dice`, `lesions` (connected parts of the truth) and how many were `found`: None for a scan as it is; `false_positives`
        (connected parts of at least `LEAST_ML` that touch no anomaly) and `flagged` (share of the healthy brain's voxels).
    """
    above = (volume > threshold) & brain
    labels, count = ndimage.label(above, structure=_CORNERS)
    numbers = np.arange(1, count + 1)
    parts_ml = ndimage.sum_labels(above.astype(float), labels, numbers) * spacing_mm**3 / 1000.0
    touching = ndimage.maximum(truth.astype(float), labels, numbers) if count else np.empty(0)
    false = int(((np.asarray(parts_ml) >= LEAST_ML) & (np.asarray(touching) == 0)).sum())
    healthy = brain & ~truth
    found: dict[str, float | None] = dict.fromkeys(RATE_FIELDS)
    found |= {"false_positives": float(false), "flagged": float(above[healthy].mean())}
    if truth.any():
        lesions, number = ndimage.label(truth, structure=_CORNERS)
        shares = ndimage.mean(above.astype(float), lesions, np.arange(1, number + 1))
        pair = (torch.from_numpy(np.stack([~part, part])[None].astype(np.float32)) for part in (above, truth))
        dice = float(compute_dice(*pair, include_background=False)[0, 0])
        found |= {"dice": dice, "lesions": float(number), "found": float((np.asarray(shares) >= FOUND_SHARE).sum())}
    return found
