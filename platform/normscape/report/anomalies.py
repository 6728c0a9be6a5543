"""A sheet of anomaly families: the same images with an anomaly of each, to look at before a family is trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from normscape.datasets.anomalies import AnomalyFamily, Scene
from normscape.datasets.batches import ImageBatch
from normscape.datasets.samples import to_uint8
from normscape.report.brains import outlined
from normscape.report.pictures import flat, framed, mosaic
from normscape.report.style import LIGHT, Theme, on_white, png

Pictures = NDArray[np.uint8]


def anomaly_sheet(
    families: Mapping[str, AnomalyFamily],
    batch: ImageBatch,
    *,
    seed: int,
    sample_ids: Sequence[int],
    scene: Scene,
    donors: ImageBatch | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """Families as rows; for each image the image, the image with its anomaly, and the same with the mask's outline.

    Of volumes the axial slice that holds most of the mask is shown, the middle one where there is no anomaly, with the subject's
    right at the left and the front up.

    Args:
        families: name to family, in the order of the rows.
        batch: normal images, at least one.
        seed: of the anomalies.
        sample_ids: (B,).
        scene: dimension and spacing.
        donors: an image of another subject for each, where a family needs them.
        theme: light or dark.

    Raises:
        DataError: a family cannot be drawn into these images.
    """
    lines: list[list[Pictures]] = []
    for family in families.values():
        drawn = family.draw(batch, seed=seed, sample_ids=sample_ids, scene=scene, donors=donors)
        lines.append([])
        for before, after, mask in zip(batch.images, drawn.images, drawn.masks[:, 0].numpy(), strict=True):
            plain, changed = (_plane(to_uint8(image).numpy(), mask) for image in (before, after))
            area = _plane(mask[None], mask)[..., 0] >= 0.5
            lines[-1] += [np.moveaxis(part, -1, 0) for part in (plain, changed, outlined(changed, area))]
    sheet = mosaic(lines, gap=2)
    width, height = (sheet.shape[1] + 2) / len(batch), (sheet.shape[0] + 2) / len(lines)
    columns = [((i + 0.5) * width - 1, f"image {sample_id}") for i, sample_id in enumerate(sample_ids)]
    return framed(sheet, theme, columns, [((i + 0.5) * height - 1, name) for i, name in enumerate(families)])


def save_anomaly_sheet(figure: Figure, path: Path) -> None:
    """Write a sheet as PNG, on white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    on_white(png(figure)).save(path, format="PNG")


def _plane(image: NDArray[np.generic], mask: NDArray[np.floating]) -> Pictures:
    """A picture (H, W, 3) of an image (C, *S): of a volume the slice that holds most of the mask."""
    if image.ndim == 3:
        return flat(image)
    held = mask.sum(axis=(1, 2))
    place = int(held.argmax()) if held.any() else len(held) // 2
    return flat(image[:, place, ::-1, ::-1])
