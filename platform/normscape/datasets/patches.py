"""Patches of a prepared cohort: cut from its memory-mapped volumes when they are asked for (thesis III.B.1 to III.B.3).

Each scan has the same number of patches. Their centres are drawn once from the atlas mask, from those places where the patch
holds enough of the scan's own brain; which ones is a pure function of (seed, scan, number of the patch). A folder keeps

- `patches.parquet`, a row a patch: scan (row of the cohort), z, y, x (the voxel at the centre, index side // 2 of the patch);
- `contrast.parquet`, a row a scan of the cohort: what `normscape.datasets.contrast` measures of it.

Where `data.patches` is `whole`, a scan is one patch, which holds all of it: a cube around the middle of the atlas's brain.

Intensities are z-scores under the scan's mask, and -1 to 1 stands for -3 to 3 standard deviations. In memory are the two tables
and one batch, never a volume.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscape.config import POSITION_COLUMN, DataConfig
from normscape.datasets.chairs import cache_folder
from normscape.datasets.coarse import at_spacing, extent, middle_cube, padded
from normscape.datasets.contrast import SCHEMA, ContrastShifts, ContrastTable, measure_contrast, shift_contrast
from normscape.datasets.prepared import PreparedCohort
from normscape.errors import DataError

INTENSITY_RANGE_SD = 3.0
"""Standard deviations of the brain's intensities that 1 stands for."""
AGE_COLUMN, CONTRAST_COLUMN = "age_years", "contrast"
PATCHES_NAME, CONTRAST_NAME = "patches.parquet", "contrast.parquet"
NOISE_SIDE = 64
"""Side of the noise volume that backgrounds are cut from when they must not change; it repeats at its faces."""
COARSEST_MM = 4
"""Beyond this side of a voxel the simulated cohort is made finer and coarsened, as a real one is."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PatchSource:
    """Patches as an image source; a row is a patch.

    Attributes:
        cohort: where they are cut from.
        side: of a patch, in voxels.
        scan: int32 (P,), row of the cohort.
        center: int16 (P, 3), voxel z, y, x at index side // 2 of the patch.
        contrast: what was measured of the cohort's scans.
        shifts: how contrast is changed in training; None to leave it.
        background: what lies outside the mask.
        whole: every scan is one patch, see `whole_center`.
    """

    cohort: PreparedCohort
    side: int
    scan: NDArray[np.int32]
    center: NDArray[np.int16]
    contrast: ContrastTable
    shifts: ContrastShifts | None = None
    background: Literal["noise", "constant"] = "noise"
    whole: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S) of one patch."""
        return (1, self.side, self.side, self.side)

    def __len__(self) -> int:
        return len(self.scan)

    def draw(self, rows: Tensor, random: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Patches float32 (B, 1, *S) in [-1, 1] and, where contrast is shifted, `contrast` (B, 6) in standard deviations.

        Without `random`, a patch is a pure function of its row, background noise included. With it, contrast shifts and noise are
        drawn anew.
        """
        index = rows.cpu().numpy()
        mask = torch.from_numpy(self._cut(self.cohort.masks, index).astype(bool))
        scan = torch.from_numpy(self.scan[index].astype(np.int64))
        wide = (-1, 1, 1, 1, 1)
        raw = torch.from_numpy(self._cut(self.cohort.volumes, index)).to(torch.float32)
        z = (raw - self.contrast.mean[scan].view(wide)) / self.contrast.std[scan].view(wide)
        drawn: dict[str, Tensor] = {}
        if self.shifts is not None and random is not None:
            shift = drawn[CONTRAST_COLUMN] = self.shifts.sample(len(rows), random).to(z.device)
            table = self.contrast
            known = (table.parameters[scan], table.weights[scan], table.quantiles[scan])
            z = shift_contrast(z, *known, self.shifts.to_parameters(shift))
        images = torch.where(mask, z / INTENSITY_RANGE_SD, self._background(index, random))
        return images.clamp_(-1.0, 1.0), drawn

    def masks(self, rows: Tensor) -> Tensor:
        """Where the brain is: bool (B, 1, *S)."""
        return torch.from_numpy(self._cut(self.cohort.masks, rows.cpu().numpy()).astype(bool))

    def values(self) -> dict[str, Tensor]:
        """Columns of all patches: `age_years` (P, 1); `position_mm` (P, 3), the middle of the patch in RAS millimetres from the
        middle of the atlas mask's bounding box; `contrast` (P, 6), zero, where it is shifted in training."""
        frame = self.position_frame()
        place = self.center.astype(np.float64) - (self.side // 2 - (self.side - 1) / 2)
        ages = self.cohort.subjects["age_years"].to_numpy()
        columns = {
            AGE_COLUMN: torch.from_numpy(ages[self.scan].astype(np.float32)).unsqueeze(1),
            POSITION_COLUMN: torch.from_numpy((place @ frame[:3, :3].T + frame[:3, 3]).astype(np.float32)),
        }
        if self.shifts is not None:
            columns[CONTRAST_COLUMN] = torch.zeros(1, len(self.shifts.std)).expand(len(self), -1)
        return columns

    def position_frame(self) -> NDArray[np.float64]:
        """(4, 4), index (z, y, x, 1) to RAS millimetres from the middle of the atlas mask's bounding box."""
        found = np.argwhere(self.cohort.atlas_mask)
        frame = np.array(self.cohort.affine, np.float64)
        frame[:3, 3] -= self.cohort.world((found.min(0) + found.max(0)).astype(np.float64) / 2)
        return frame

    def people(self) -> tuple[tuple[str, ...], Tensor]:
        """The persons with patches, sorted, and of which of them each patch is, int64 (P,)."""
        names, of_scan = np.unique(
            self.cohort.subjects["subject"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True
        )
        present, of_patch = np.unique(of_scan[self.scan], return_inverse=True)
        return tuple(names[present].tolist()), torch.from_numpy(of_patch.astype(np.int64))

    def _cut(self, volumes: NDArray[np.generic], rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """(B, 1, *S) of the volumes (N, Z, Y, X), 0 where a patch leaves its volume."""
        scan, side = self.scan[rows], self.side
        corner = self.center[rows].astype(np.int64) - side // 2
        nearest = corner.clip(0, np.array(self.cohort.shape) - side)
        windows = np.lib.stride_tricks.sliding_window_view(volumes, (side,) * 3, axis=(1, 2, 3))
        cut = windows[scan, *nearest.T]  # whole blocks, several times faster than voxel by voxel
        beyond = (corner != nearest).any(axis=1)
        if beyond.any():
            axis = (corner - nearest)[beyond, :, None] + np.arange(side)  # (b, 3, side): places in the nearest block
            inside = (axis >= 0) & (axis < side)
            (z, y, x), (in_z, in_y, in_x) = (array.transpose(1, 0, 2) for array in (axis.clip(0, side - 1), inside))
            block = np.arange(len(axis))[:, None, None, None]
            moved = cut[beyond][block, z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]]
            cut[beyond] = moved * (in_z[:, :, None, None] & in_y[:, None, :, None] & in_x[:, None, None, :])
        return cut[:, None]

    def _background(self, rows: NDArray[np.int64], random: torch.Generator | None) -> Tensor:
        """(B, 1, *S), or what broadcasts to it."""
        if self.background == "constant":
            return torch.tensor(-1.0)
        if random is not None:
            noise = torch.randn(len(rows), *self.shape, generator=random, device=random.device).to("cpu")
        else:
            start = [_scrambled(rows, axis) % NOISE_SIDE for axis in range(3)]
            noise = torch.from_numpy(_noise(self.side)[*start][:, None])
        return noise / INTENSITY_RANGE_SD


def open_patches(
    config: DataConfig,
    side: int,
    *,
    cohort: PreparedCohort,
    seed: int,
    folder: Path | None = None,
    learn_from: Collection[str] | None = None,
    progress: Progress | None = None,
) -> PatchSource:
    """The patches of a cohort; their tables are read from the folder, or made and kept there.

    Args:
        config: number of patches, background and contrast augmentation.
        side: of a patch, in voxels.
        cohort: where they are cut from.
        seed: of the centres.
        folder: of the tables; nothing is kept when None.
        learn_from: subjects whose scans tell how contrast varies; all when None.
        progress: called with (scans measured, scans in all).

    Raises:
        DataError: the cohort does not fit the configuration or the tables; a scan's intensities are unusable; no scan is left.
    """
    if abs(cohort.spacing_mm - config.spacing_mm) > 1e-6:
        raise DataError(
            f"{cohort.folder}: data.spacing_mm is {config.spacing_mm:g}, the cohort has voxels of {cohort.spacing_mm:g} mm"
        )
    whole = config.patches == "whole"
    if whole:
        cohort = padded(cohort, side)
    if side > min(cohort.shape):
        raise DataError(f"{cohort.folder}: volumes of {cohort.shape} voxels hold no patch with a side of {side}")
    patches, measured = _tables(config, side, cohort, seed, folder, progress)
    contrast = ContrastTable.from_table(measured)
    center = np.stack([patches[axis].to_numpy() for axis in "zyx"], axis=1)
    shifts = None
    if config.contrast_augmentation != "none":
        names = cohort.subjects["subject"].to_pylist()
        chosen = [learn_from is None or name in learn_from for name in names]
        shifts = ContrastShifts.fit(contrast.parameters[torch.tensor(chosen)], config.contrast_augmentation)
    return PatchSource(cohort, side, patches["scan"].to_numpy(), center, contrast, shifts, config.background, whole)


def whole_center(cohort: PreparedCohort, side: int) -> NDArray[np.int16]:
    """Where the one patch of a whole scan lies: in the middle of the atlas mask's bounding box, (3,) voxels z, y, x.

    Args:
        cohort: with volumes that hold the patch, see `padded`.
        side: of the patch, in voxels.

    Raises:
        DataError: the atlas's brain does not fit into the patch.
    """
    corner = middle_cube(cohort.atlas_mask, side)
    if corner is None:
        found = " x ".join(map(str, extent(cohort.atlas_mask)))
        raise DataError(
            f"{cohort.folder}: data.patches is whole, and the atlas's brain of {found} voxels of {cohort.spacing_mm:g} mm does "
            f"not fit into a cube of {side} (image_size); take a coarser data.spacing_mm, or a larger image_size"
        )
    return np.array(corner, np.int16) + np.int16(side // 2)


def open_cohort(config: DataConfig, progress: Progress | None = None) -> PreparedCohort:
    """The prepared cohort at `data.root`; the simulated cohort, made once for all experiments, where that is empty.

    Coarsened where `data.spacing_mm` is a multiple of its spacing (`normscape.datasets.coarse`).

    Args:
        config: `root`, or number of subjects of the simulated cohort; and the spacing.
        progress: called with (scans made, scans in all) while the cohort is simulated.

    Raises:
        DataError: there is no readable prepared cohort, or the cache cannot be written.
    """
    if config.root is not None:
        return at_spacing(PreparedCohort.open(config.root), config.spacing_mm)
    from normscape.datasets import simulated  # only where it is needed

    subjects, spacing = config.simulated_subjects, simulated_spacing(config.spacing_mm)
    folder = cache_folder() / f"simulated-cohort-{simulated.SIMULATOR_VERSION}-{subjects}-subjects-{spacing}mm"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("a") as file:  # released by the system when the process ends in any way
            fcntl.flock(file, fcntl.LOCK_EX)
            made = simulated.simulate_prepared(folder, subjects=subjects, seed=0, spacing_mm=spacing, progress=progress)
            return at_spacing(made, config.spacing_mm)
    except OSError as error:
        raise DataError(
            f"{folder}: the simulated cohort cannot be written ({error}); NORMSCAPE_CACHE names another place"
        ) from error


def simulated_spacing(spacing_mm: float) -> int:
    """Side of a voxel, in millimetres, that the simulated cohort, and a scan that is compared with it, is prepared with."""
    spacing = round(spacing_mm)
    return spacing if spacing <= COARSEST_MM else 2 if spacing % 2 == 0 else 1


def _tables(
    config: DataConfig, side: int, cohort: PreparedCohort, seed: int, folder: Path | None, progress: Progress | None
) -> tuple[pa.Table, pa.Table]:
    """`patches.parquet` and `contrast.parquet`, from the folder or made anew."""
    paths = None if folder is None else (folder / PATCHES_NAME, folder / CONTRAST_NAME)
    names = cohort.subjects.select(["subject", "session"])
    if paths is not None and all(path.exists() for path in paths):
        try:
            patches, contrast = (pq.read_table(path, memory_map=True) for path in paths)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{folder}: not readable tables of patches ({error}); run again with `--from prepare`") from error
        if not contrast.select(["subject", "session"]).equals(names.cast(contrast.select(["subject", "session"]).schema)):
            raise DataError(f"{cohort.folder}: the cohort changed since {folder} was made; run again with `--from prepare`")
        return patches, contrast
    patches, contrast = _measure(config, side, cohort, seed, progress)
    if paths is not None:
        for path, table in zip(paths, (patches, contrast), strict=True):
            aside = path.with_name(f"{path.name}.tmp")
            pq.write_table(table, aside)
            aside.replace(path)
    return patches, contrast


def _measure(
    config: DataConfig, side: int, cohort: PreparedCohort, seed: int, progress: Progress | None
) -> tuple[pa.Table, pa.Table]:
    """Go through the scans, one in memory at a time."""
    scans: list[NDArray[np.int32]] = []
    centers: list[NDArray[np.int16]] = []
    measured: list[dict[str, object]] = []
    for row, person in enumerate(cohort.subjects.select(["subject", "session", "age_years"]).to_pylist()):
        mask = np.asarray(cohort.masks[row])
        name = {"subject": person["subject"], "session": person["session"]}
        try:
            measured.append(name | measure_contrast(cohort.volumes[row][mask > 0]))
        except DataError as error:
            raise DataError(f"{cohort.folder}: scan {row} ({'_'.join(filter(None, name.values()))}): {error}") from error
        if person["age_years"] is not None:  # a scan without an age has no place among samples that are known by it
            found = whole_center(cohort, side)[None] if config.patches == "whole" else sample_centers(
                mask, cohort.atlas_mask, side=side, count=config.patches_per_subject, max_background=config.max_background,
                key=(seed, _number(f"{name['subject']}/{name['session']}")),
            )  # fmt: skip
            scans.append(np.full(len(found), row, np.int32))
            centers.append(found)
        if progress is not None:
            progress(row + 1, len(cohort))
    if not sum(map(len, scans)):
        raise DataError(
            f"{cohort.folder}: no scan with a known age has a patch with at most {config.max_background:.0%} background"
        )
    center = np.concatenate(centers)
    patches = pa.table({"scan": np.concatenate(scans)} | {axis: center[:, i] for i, axis in enumerate("zyx")})
    return patches, pa.Table.from_pylist(measured, schema=SCHEMA)


def sample_centers(
    mask: NDArray[np.uint8], atlas_mask: NDArray[np.uint8], *, side: int, count: int, max_background: float, key: tuple[int, ...]
) -> NDArray[np.int16]:
    """Centres of patches, drawn from the atlas mask where a patch has at most this share of background; repeats are possible.

    Args:
        mask: the scan's own, (Z, Y, X).
        atlas_mask: (Z, Y, X).
        side: of a patch, in voxels.
        count: how many; the first ones do not depend on it.
        max_background: share of a patch outside the scan's mask; what leaves the volume is outside.
        key: of the random numbers.

    Returns:
        (count, 3) voxels z, y, x; none at all where no place has enough brain.
    """
    allowed = np.flatnonzero((atlas_mask > 0) & (box_sums(mask, side) >= (1 - max_background) * side**3))
    if not len(allowed):
        return np.empty((0, 3), np.int16)
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    chosen = allowed[(random.random(count) * len(allowed)).astype(np.int64)]
    return np.stack(np.unravel_index(chosen, mask.shape), axis=1).astype(np.int16)


def box_sums(mask: NDArray[np.uint8], side: int) -> NDArray[np.int32]:
    """Voxels of the mask in the cube around each voxel, which is the cube's index side // 2: (Z, Y, X), 0 beyond the faces."""
    total = (mask > 0).astype(np.int32)
    for axis in range(total.ndim):
        pad = [(0, 0)] * total.ndim
        pad[axis] = (side // 2 + 1, side - 1 - side // 2)
        running = np.moveaxis(np.cumsum(np.pad(total, pad), axis=axis, dtype=np.int32), axis, 0)
        total = np.moveaxis(running[side:] - running[:-side], 0, axis)
    return total


def _number(text: str) -> int:
    """A whole number that stands for a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _scrambled(rows: NDArray[np.int64], salt: int) -> NDArray[np.uint64]:
    """Numbers that look random, a function of row and salt: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    x = (rows.astype(np.uint64) * np.uint64(3) + np.uint64(salt + 1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=2)
def _noise(side: int) -> NDArray[np.float32]:
    """All blocks of standard Gaussian noise that repeats every NOISE_SIDE: a view (NOISE_SIDE, NOISE_SIDE, NOISE_SIDE, *S)."""
    once = np.random.Generator(np.random.Philox(0)).standard_normal((NOISE_SIDE,) * 3, dtype=np.float32)
    return np.lib.stride_tricks.sliding_window_view(np.pad(once, (0, side - 1), mode="wrap"), (side,) * 3)
