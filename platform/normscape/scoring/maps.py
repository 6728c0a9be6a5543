"""Anomaly maps: patch scores overlapped into a volume, and the table of its most abnormal regions (thesis II.B).

Each patch of a regular grid over the brain is projected and scored; the score at a voxel is the mean over the patches there,
weighted by a window. Beside it, from the same projections, lie the reconstruction and the absolute residual. A patch says
whether, hardly where: so the anomaly map weighs the score by how far the voxel itself leaves what is usual at its place, where
that is known. A whole scan is one patch, with one score.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from normscape.datasets.patches import INTENSITY_RANGE_SD, PatchSource, whole_center
from normscape.inversion.volumes import Blender, patch_grid

Volume = NDArray[np.float32]
Progress = Callable[[int, int], None]
ToScan = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""RAS millimetres of the atlas (N, 3) to RAS millimetres of a scan (N, 3)."""


EXCESS_SHOWN = 8.0
"""Standard deviations beyond the usual that are brightest in pictures."""
UNUSUAL = 0.05
"""p-value up to which a patch counts as unusual."""
TINY = 1e-30
"""Least mean of a gradient; one that is 0 everywhere stays so."""
EXCESS_HALF = 4.0
"""Standard deviations beyond the usual at which a voxel takes half of its patches' score: 1 voxel in 200 of a healthy brain."""


class Rated(NamedTuple):
    """What is said of a batch of patches.

    Attributes:
        scores: (B,), higher is more abnormal.
        images: reconstructions (B, 1, *S).
        excess: by how much each voxel leaves what is usual at its place, (B, 1, *S); None where that is not known.
        gradient: how much a change of each voxel would change how unusual the patch is, (B, 1, *S); None where nothing tells.
    """

    scores: Tensor
    images: Tensor
    excess: Tensor | None = None
    gradient: Tensor | None = None


class PatchRater(Protocol):
    """What scores patches: a finished system, or anything else that does."""

    def rate(self, images: Tensor, values: Mapping[str, Tensor], masks: Tensor | None = None) -> Rated:
        """What there is to say of patches (B, 1, *S) in [-1, 1]."""


@runtime_checkable
class ValueReader(Protocol):
    """What reads an attribute's value from patches: a finished system does."""

    def read(self, name: str, images: Tensor) -> Tensor:
        """Values (B, D) of an attribute, in its unit, as its auxiliary network sees them in patches (B, 1, *S) in [-1, 1]."""


@runtime_checkable
class PValueGiver(Protocol):
    """What says how often a healthy patch scores as high: a finished system that knows healthy subjects does."""

    def p_values(self, scores: Tensor, values: Mapping[str, Tensor], *, one_subject: bool = False) -> NDArray[np.float64] | None:
        """p-values (B,) of scores (B,) under known conditions (B, D); None where no healthy subjects are known.

        `one_subject`: these are all the patches of one subject, who is then ranked among the healthy ones.
        """


@dataclass(frozen=True)
class ScanMaps:
    """What came of one scan, on the atlas's grid; (Z, Y, X), 0 outside the mask and where no patch lies.

    Attributes:
        image: the scan, in [-1, 1]: 1 stands for 3 standard deviations.
        reconstruction: its blended projection, likewise.
        score: mean anomaly score of the patches at each voxel.
        residual: mean absolute residual, in units of `image`.
        excess: over what is usual at each voxel's place, in standard deviations; 0 everywhere where that is not known.
        covered: bool, the voxels of the brain that lie in a patch.
        patches: how many.
        lowest_p: least p-value of a patch, ranked among all patches of the scan and of healthy subjects; NaN where none is known.
        unusual: share of the patches with a p-value of at most `UNUSUAL`, which is as much in a healthy scan, on average; NaN
            likewise.
        gradient: where a change of the image would change most how unusual it is, its mean over covered voxels being 1; None
            where nothing tells.
    """

    image: Volume
    reconstruction: Volume
    score: Volume
    residual: Volume
    excess: Volume
    covered: NDArray[np.bool_]
    patches: int
    lowest_p: float = math.nan
    unusual: float = math.nan
    gradient: Volume | None = None

    @property
    def anomaly(self) -> Volume:
        """The anomaly map, in [0, 1]: the score times e / (e + EXCESS_HALF) for an excess of e; the score where none is known."""
        return self.score * (self.excess / (self.excess + EXCESS_HALF)) if self.excess.any() else self.score

    def share_above(self, threshold: float) -> float:
        """Share of the covered voxels whose anomaly exceeds a threshold."""
        return float((self.anomaly[self.covered] > threshold).mean())

    def anomaly_threshold(self, threshold: float) -> float:
        """Of the anomaly map, for a threshold of the score: a voxel just there that leaves the usual by EXCESS_HALF."""
        return threshold / 2 if self.excess.any() else threshold


def on_grid(source: PatchSource, scan: int, *, stride: int, max_background: float) -> PatchSource:
    """The patches of a regular grid over one scan of a cohort, instead of random ones; the one patch of a whole scan.

    Args:
        source: any patches of the cohort.
        scan: row of the cohort.
        stride: voxels from one patch to the next.
        max_background: largest share of a patch outside the scan's mask.
    """
    centres = grid_centres(source, source.cohort.masks[scan], stride=stride, max_background=max_background)
    return replace(source, scan=np.full(len(centres), scan, np.int32), center=centres.astype(np.int16))


def grid_centres(source: PatchSource, mask: NDArray[np.uint8], *, stride: int, max_background: float) -> NDArray[np.int64]:
    """Where the patches of a brain (Z, Y, X) lie: on a regular grid, or in the middle where a scan is one patch: (P, 3)."""
    if source.whole:
        return whole_center(source.cohort, source.side)[None].astype(np.int64)
    return patch_grid(mask, source.side, stride, max_background)


def unit_volume(source: PatchSource, scan: int) -> Volume:
    """A whole scan as patches see it, in [-1, 1], 0 outside the mask: (Z, Y, X)."""
    mean, std = float(source.contrast.mean[scan]), float(source.contrast.std[scan])
    raw = np.asarray(source.cohort.volumes[scan], np.float32)
    z = np.clip((raw - mean) / (std * INTENSITY_RANGE_SD), -1, 1)
    return np.where(source.cohort.masks[scan] > 0, z, 0).astype(np.float32)


def with_image(source: PatchSource, scan: int, image: NDArray[np.floating]) -> PatchSource:
    """The same patches cut from one changed scan; mean and deviation stay those of the scan as it was.

    Args:
        source: patches of this scan alone.
        scan: row of the cohort.
        image: (Z, Y, X) in [-1, 1], as `unit_volume` gives it.
    """
    mean, std = float(source.contrast.mean[scan]), float(source.contrast.std[scan])
    mask = np.asarray(source.cohort.masks[scan])
    volume = np.where(mask > 0, np.asarray(image, np.float32) * (std * INTENSITY_RANGE_SD) + mean, 0).astype(np.float16)
    cohort = replace(
        source.cohort, volumes=volume[None], masks=mask[None], subjects=source.cohort.subjects.slice(scan, 1)
    )  # fmt: skip
    contrast = replace(source.contrast, **{name: part[scan : scan + 1] for name, part in vars(source.contrast).items()})
    return replace(source, cohort=cohort, contrast=contrast, scan=np.zeros_like(source.scan))


class _Blenders:
    """Score, reconstruction and residual of one scan, patch by patch."""

    def __init__(self, source: PatchSource, columns: Mapping[str, str], rater: PatchRater, batch_size: int) -> None:
        self.columns, self.rater, self.batch_size = columns, rater, batch_size
        self.rebuilt, self.score, self.residual, self.excess, self.gradient = (
            Blender(source.cohort.shape, source.side) for _ in range(5)
        )
        self.rated: list[tuple[Tensor, dict[str, Tensor]]] = []  # scores and conditions of the patches so far

    def add(self, source: PatchSource, rows: Tensor, progress: Callable[[int], None]) -> _Blenders:
        """Rate some patches of a scan and lay them down; `progress` hears how many were."""
        known = source.values()
        for part in rows.split(self.batch_size):
            if len(part):
                images, masks = source.draw(part)[0], source.masks(part)
                values = {name: known[c][part] for name, c in self.columns.items()}
                rated = self.rater.rate(images, values, masks)
                self.rated.append((rated.scores.cpu(), values))
                centres = source.center[part.numpy()]
                self.score.add(rated.scores, centres)
                self.rebuilt.add(rated.images, centres)
                self.residual.add((images - rated.images.cpu()).abs(), centres)
                if rated.excess is not None:
                    self.excess.add(rated.excess, centres, masks)
                if rated.gradient is not None:
                    self.gradient.add(rated.gradient, centres, masks)
                progress(len(part))
        return self

    @property
    def _parts(self) -> tuple[Blender, ...]:
        """In the order of `ScanMaps`."""
        return self.rebuilt, self.score, self.residual, self.excess, self.gradient

    def fork(self) -> _Blenders:
        """A copy to go on with on its own."""
        twin = copy.copy(self)
        twin.rated = list(self.rated)
        twin.rebuilt, twin.score, twin.residual, twin.excess, twin.gradient = (copy.deepcopy(part) for part in self._parts)
        return twin

    def maps(self, source: PatchSource) -> ScanMaps:
        """What has come together so far."""
        scan = int(source.scan[0])
        covered = torch.from_numpy(np.asarray(source.cohort.masks[scan]) > 0) & self.score.covered
        rebuilt, score, residual, excess, slope = (torch.where(covered, part.result(), 0.0).numpy() for part in self._parts)
        image = unit_volume(source, scan)
        scores = torch.cat([one for one, _ in self.rated])
        values = {name: torch.cat([known[name] for _, known in self.rated]) for name in self.columns}
        p = self.rater.p_values(scores, values, one_subject=True) if isinstance(self.rater, PValueGiver) else None
        lowest, unusual = (math.nan, math.nan) if p is None else (float(p.min()), float((p <= UNUSUAL).mean()))
        gradient = None
        if bool(self.gradient.covered.any()):
            gradient = np.asarray(slope / max(float(slope[covered.numpy()].mean()), TINY), np.float32)
        return ScanMaps(image, rebuilt, score, residual, excess, covered.numpy(), len(scores), lowest, unusual, gradient)


def scan_maps(
    source: PatchSource,
    columns: Mapping[str, str],
    rater: PatchRater,
    *,
    batch_size: int,
    changed: Sequence[PatchSource] = (),
    progress: Progress | None = None,
) -> list[ScanMaps]:
    """Project and score all patches of one scan, and blend what comes out.

    Args:
        source: the patches of `on_grid`.
        columns: value attribute to its column among the source's values.
        rater: projects and scores; a patch's result must not depend on its batch.
        batch_size: patches at once.
        changed: the same patches of changed forms of the scan (`with_image`); only those that differ are rated anew.
        progress: told (patches done, patches in all).

    Returns:
        The maps of the scan, then those of each changed form.

    Raises:
        ValueError: there is no patch.
    """
    if not len(source):
        raise ValueError("no patch of this scan holds enough of the brain")
    differ = [differing(source, other) for other in changed]
    anywhere = torch.stack(differ).any(0) if differ else torch.zeros(len(source), dtype=torch.bool)
    total, done = len(source) + len(changed) * int(anywhere.sum()), 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    same = _Blenders(source, columns, rater, batch_size).add(source, (~anywhere).nonzero().squeeze(1), tell)
    forms = [(source, torch.zeros_like(anywhere)), *zip(changed, differ, strict=True)]
    result = []
    for form, other in forms:
        blenders = same.fork()
        blenders.add(form, other.nonzero().squeeze(1), tell)
        blenders.add(source, (anywhere & ~other).nonzero().squeeze(1), tell)
        result.append(blenders.maps(form))
    return result


def differing(source: PatchSource, other: PatchSource) -> Tensor:
    """Which patches of two forms of a scan are not the same: bool (P,)."""
    parts = [(source.draw(rows)[0] != other.draw(rows)[0]).flatten(1).any(1) for rows in torch.arange(len(source)).split(256)]
    return torch.cat(parts)


REGION_SCHEMA = pa.schema(
    [("volume_ml", pa.float64()), ("peak_score", pa.float64()), ("mean_score", pa.float64())]
    + [(f"{what}_{axis}_mm", pa.float64()) for what in ("atlas", "atlas_peak", "scan", "scan_peak") for axis in "xyz"]
)
"""Columns of a table of regions: millimetres are RAS; `atlas` is the region's centre, weighted by the score, in the space of the
atlas, `atlas_peak` its highest voxel; `scan` and `scan_peak` the same in the scan's own space, null when that is not known."""


def regions(
    score: NDArray[np.floating],
    threshold: float,
    spacing_mm: float,
    affine: NDArray[np.float64],
    *,
    to_scan: ToScan | None = None,
    least_ml: float = 0.0,
) -> pa.Table:
    """The connected parts of a map above a threshold, the highest peak first.

    Args:
        score: (Z, Y, X).
        threshold: voxels above it belong to a region; voxels that touch by a corner are connected.
        spacing_mm: side of a voxel.
        affine: (4, 4), index (z, y, x, 1) to RAS millimetres of the atlas.
        to_scan: brings points into the scan's own space.
        least_ml: smaller regions are left out.

    Returns:
        A table of `REGION_SCHEMA`.
    """
    labels, count = ndimage.label(score > threshold, structure=np.ones((3, 3, 3)))
    numbers = np.arange(1, count + 1)
    if not count:
        return REGION_SCHEMA.empty_table()
    volume = ndimage.sum_labels(np.ones_like(labels), labels, numbers) * spacing_mm**3 / 1000.0
    peak = ndimage.maximum(score, labels, numbers)
    above = np.asarray(score, np.float64) - threshold
    centre, top = (np.array(found, np.float64) for found in (
        ndimage.center_of_mass(above, labels, numbers), ndimage.maximum_position(score, labels, numbers)
    ))  # fmt: skip
    places = {"atlas": centre @ affine[:3, :3].T + affine[:3, 3], "atlas_peak": top @ affine[:3, :3].T + affine[:3, 3]}
    if to_scan is not None:
        places |= {"scan": to_scan(places["atlas"]), "scan_peak": to_scan(places["atlas_peak"])}
    columns = {"volume_ml": volume, "peak_score": peak, "mean_score": ndimage.mean(score, labels, numbers)}
    columns |= {f"{what}_{axis}_mm": found[:, i] for what, found in places.items() for i, axis in enumerate("xyz")}
    order = [i for i in np.argsort(-peak, kind="stable") if volume[i] >= least_ml]
    filled = {
        name: columns[name][order] if name in columns else pa.nulls(len(order), pa.float64()) for name in REGION_SCHEMA.names
    }
    return pa.table(filled, schema=REGION_SCHEMA)
