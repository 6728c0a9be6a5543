"""Images to features by projection, for the conditional detectors: residuals, styles, suspect regions, several starts."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from normscape.baselines.known import BOTH, KnownConditions
from normscape.config import Config
from normscape.configio import digest, section_digest
from normscape.datasets.batches import ImageBatch
from normscape.datasets.samples import to_uint8, to_unit_range
from normscape.errors import ConfigError, DataError
from normscape.evaluation.kept import Kept
from normscape.inversion.projector import Projection, Projector
from normscape.losses.masked import as_mask, weighted_mean
from normscape.scoring.conditions import Array
from normscape.scoring.features import READ_BY_NETWORKS, RESIDUAL_PREFIX
from normscape.stages.models import load_projector
from normscape.stages.system import condition_columns, projection_columns
from normscape.training.seeding import seeded

MASKED_PREFIX, SPREAD_PREFIX = "masked/", "spread/"
SUSPECT = 0.05
"""Share of an image's voxels that a masked round calls suspect, before it adds their neighbours."""
START_NOISE = 0.5
"""Standard deviation by which further starts differ from the first, in whitened units."""
STAGES = ("auxiliary", "gan", "controllers", "latents", "normals")
"""Finished stages that are read, as far as the experiment has them."""
_HERE = Path(__file__).resolve()
_CODE = (_HERE, *sorted((_HERE.parents[1] / "inversion").glob("*.py")))
"""What projects: a change of it makes kept results useless."""
_SECONDS = "seconds"
_APART = ("density", "levels", "images", "linear")
"""Parts that have no say in how an image is projected."""
_COUNTS = tuple(f"projection.{name}" for name in ("train_samples", "test_samples", "calibration_samples", "curve_images"))
"""Settings of stage `project` that have none either."""
_OF_DISCRIMINATOR = re.compile(r"(residual_|masked/|spread/)discriminator")
_SAME_FOR_EVERY_RECONSTRUCTION = re.compile(rf"{RESIDUAL_PREFIX}(atlas|conditions|encoded|texture|condition)_")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a conditional detector is made of; each part can be left out, to see what it is worth.

    Attributes:
        density: distance of styles from what is usual under the conditions (`scoring.density`).
        levels: residuals against what is usual under the conditions (`scoring.expected`).
        discriminator: residuals in the discriminator's features.
        auxiliary: what auxiliary networks read from image and reconstruction.
        optimise: whether styles are optimised, or the encoder's answer is taken as it is.
        steps: of the optimisation; those of the configuration when None.
        masked_rounds: how often the most suspect region is masked and the image projected again; 0: never.
        inversions: from how many starts an image is projected.
        conditions: which known conditions are used: `both` (all of them), `none`, the name of a single one, or `shuffled`.
        images: training images that are projected; `projection.train_samples` when None. Never more than the budget.
        linear: components of the linear generator whose residual is taken, too (`normscape.evaluation.linear`); 0: none.
    """

    density: bool = True
    levels: bool = False
    discriminator: bool = True
    auxiliary: bool = True
    optimise: bool = True
    steps: int | None = None
    masked_rounds: int = 0
    inversions: int = 1
    conditions: str = BOTH
    images: int | None = None
    linear: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), str(field.type)
            least = 0 if field.name in ("masked_rounds", "linear") else 1
            if kind == "bool" and not isinstance(value, bool):
                raise ValueError(f"{field.name}: expected true or false, found {value!r}")
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if kind.startswith("int") and not whole and not (value is None and kind.endswith("None")):
                raise ValueError(f"{field.name}: expected a whole number of at least {least}, found {value!r}")
            if kind == "str" and not isinstance(value, str):
                raise ValueError(f"{field.name}: expected a text, found {value!r}")
        if self.inversions > 1 and not self.optimise:
            raise ValueError("inversions: several starts without optimisation are only noise; set optimise, or inversions to 1")


@dataclass(frozen=True)
class Inverted:
    """Projected images.

    Attributes:
        columns: conditions, `length/...`, `residual_...`, `masked/...` and `spread/...`, (B,) each, sorted by name.
        coordinates: free sub-space to whitened coordinates (B, R, d), of the first start.
        conditions: as they were known, side by side, (B, D).
        residual: RMS over the channels of the mean difference in the 3-voxel neighbourhood, float32 (B, 1, *S).
        excess: over what is usual at each place, float32 (B, 1, *S); None where that is not known.
    """

    columns: dict[str, Array]
    coordinates: dict[str, Array]
    conditions: Array
    residual: Tensor
    excess: Tensor | None

    def rows(self, index: NDArray[np.intp]) -> Inverted:
        """Some of the images."""
        columns = {name: column[index] for name, column in self.columns.items()}
        coordinates = {name: u[index] for name, u in self.coordinates.items()}
        excess = None if self.excess is None else self.excess[index]
        return Inverted(columns, coordinates, self.conditions[index], self.residual[index], excess)

    def without_maps(self) -> Inverted:
        """The same, but for the maps, which take most of the memory."""
        return replace(self, residual=torch.zeros(len(self.residual), 0), excess=None)

    def arrays(self) -> dict[str, Array]:
        """All but the maps, by name."""
        columns = {f"columns/{name}": column for name, column in self.columns.items()}
        return columns | {f"coordinates/{name}": u for name, u in self.coordinates.items()} | {"conditions": self.conditions}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Inverted:
        """What `arrays` gave; there are no maps."""

        def part(kind: str) -> dict[str, Array]:
            return {name.partition("/")[2]: array for name, array in sorted(arrays.items()) if name.startswith(f"{kind}/")}

        conditions = arrays["conditions"]
        return cls(part("columns"), part("coordinates"), conditions, torch.zeros(len(conditions), 0), None)

    @classmethod
    def together(cls, parts: list[Inverted]) -> Inverted:
        """One batch after the other."""
        columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
        coordinates = {name: np.concatenate([part.coordinates[name] for part in parts]) for name in parts[0].coordinates}
        excess = [part.excess for part in parts if part.excess is not None]
        conditions = np.concatenate([part.conditions for part in parts])
        residual = torch.cat([part.residual for part in parts])
        return cls(columns, coordinates, conditions, residual, torch.cat(excess) if excess else None)


class Inverter:
    """Projects images with the networks of a finished run; an image's result does not depend on its batch.

    Args:
        config: the experiment.
        folders: finished folders of its stages.
        parts: what to do.
        pool: value attribute to its values in the training images, (P, D).
        seed: of the further starts.
        device: where to compute.
        kept: folder for results without maps, to be used again by whoever projects the same images in the same way.

    Raises:
        ConfigError: the settings do not fit the experiment.
        DataError: the experiment was not run.
    """

    def __init__(
        self,
        config: Config,
        folders: Mapping[str, Path],
        parts: Parts,
        pool: Mapping[str, Tensor],
        *,
        seed: int,
        device: torch.device,
        kept: Path | None = None,
    ) -> None:
        needed = [name for name in ("auxiliary", "gan", "controllers", "latents") if name not in folders]
        if needed:
            raise DataError(f"a conditional detector needs a finished run of {config.name}; missing: {', '.join(needed)}")
        self.config, self.parts, self.seed = config, parts, seed
        projector = load_projector(config, folders, device)
        if not parts.optimise and projector.encoder is None:
            raise ConfigError("optimise: there is no encoder whose answer could be taken as it is (gan.reconstruction_weight)")
        if not parts.optimise:
            projector = projector.changed(steps=0, start="encoder")
        elif parts.steps is not None:
            projector = projector.changed(steps=parts.steps)
        self.projector: Projector = projector
        self.known = KnownConditions(parts.conditions, pool)
        self.kept = None if kept is None else Kept(kept, self._context(folders, pool))
        self.saved_seconds = 0.0  # that kept results took when they were made

    def _context(self, folders: Mapping[str, Path], pool: Mapping[str, Tensor]) -> str:
        """All that a result depends on beside the images: networks, settings, code."""
        settings = {name: value for name, value in asdict(self.parts).items() if name not in _APART}
        networks = {name: folders[name].name for name in STAGES if name in folders}
        values = {name: value.tolist() for name, value in pool.items()} if self.parts.conditions != BOTH else {}
        seed = self.seed if self.parts.inversions > 1 else 0
        code = [hashlib.sha256(path.read_bytes()).hexdigest() for path in _CODE]
        return digest(
            [section_digest(self.config, ("projection", "controllers"), _COUNTS), networks, settings, values, seed, code]
        )

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Of the coordinates, in order."""
        return tuple(self.projector.generator.resolutions)

    def invert(self, batch: ImageBatch) -> Inverted:
        """Project a batch of any size, `projection.batch_size` images at once."""
        rows = torch.arange(len(batch)).split(self.config.projection.batch_size)
        return Inverted.together([self._invert(batch.rows(part)) for part in rows])

    def invert_without_maps(self, batch: ImageBatch) -> Inverted:
        """The same without maps; what was kept of an earlier time is not projected again."""
        rows = torch.arange(len(batch)).split(self.config.projection.batch_size)
        return Inverted.together([self._kept(batch.rows(part)) for part in rows])

    def _kept(self, batch: ImageBatch) -> Inverted:
        if self.kept is None:
            return self._invert(batch).without_maps()
        path = self.kept.path(to_uint8(batch.images), batch.masks, batch.conditions)
        arrays = self.kept.read(path)
        if arrays is None:
            began = time.perf_counter()
            found = self._invert(batch).without_maps()
            self.kept.write(path, found.arrays() | {_SECONDS: np.array([time.perf_counter() - began])})
            return found
        self.saved_seconds += float(arrays[_SECONDS][0])
        return Inverted.from_arrays(arrays)

    @torch.enable_grad()  # callers may have switched gradients off
    def _invert(self, batch: ImageBatch) -> Inverted:
        stored = to_uint8(batch.images)  # what runs project: images of 8 bits
        values = self.known.of(stored, batch.conditions)
        images = to_unit_range(stored).to(self.projector.device)
        mask = as_mask(batch.masks, self.projector.device)
        first = self.projector.project(images, values, mask)
        plain = condition_columns(self.config, values) | projection_columns(self.projector, first)
        columns: dict[str, Array] = {name: column.astype(np.float64) for name, column in plain.items()}
        if self.parts.inversions > 1:
            columns |= self._further(first, images, values, mask)
        rebuilt = first.images
        if self.parts.masked_rounds:
            found, rebuilt = self._masked(rebuilt, images, values, mask)
            columns |= found
        excess = self.projector.excess(images, values, mask)
        residual = strength(images, rebuilt, mask)
        known = [values[a.name] for a in self.config.value_attributes]
        return Inverted(
            {name: column for name, column in sorted(columns.items()) if self._wanted(name)},
            {name: u.cpu().numpy().astype(np.float64) for name, u in sorted(first.coordinates.items())},
            torch.cat([*known, torch.zeros(len(stored), 0)], dim=1).double().numpy(),
            residual.cpu(),
            None if excess is None else excess.cpu(),
        )

    def _wanted(self, name: str) -> bool:
        if not self.parts.discriminator and _OF_DISCRIMINATOR.match(name):
            return False
        return self.parts.auxiliary or not READ_BY_NETWORKS.match(name)

    def _further(self, first: Projection, images: Tensor, values: Mapping[str, Tensor], mask: Tensor | None) -> dict[str, Array]:
        """Project from further starts: residuals become means over all of them, `spread/<residual>` their standard deviations.

        `spread/images` is the standard deviation of the reconstructions, its mean over what counts. Every image starts off by the
        same amounts, so that no image depends on its batch.
        """
        known = {name: value.to(images.device) for name, value in values.items()}
        begin = self.projector.start(images, known)
        found, pictures = [first.residuals], [first.images]
        for number in range(1, self.parts.inversions):
            random = seeded(self.seed, "inversions", number)
            start = {
                name: u + START_NOISE * torch.randn(1, *u.shape[1:], generator=random).to(u.device) for name, u in begin.items()
            }
            other = self.projector.project(images, values, mask, start=start)
            found.append(other.residuals)
            pictures.append(other.images)
        columns: dict[str, Array] = {}
        for name in first.residuals:
            if not _SAME_FOR_EVERY_RECONSTRUCTION.match(name):
                several = torch.stack([residuals[name] for residuals in found])
                columns[name] = _column(several.mean(0))
                columns[SPREAD_PREFIX + name.removeprefix(RESIDUAL_PREFIX)] = _column(several.std(0, correction=0))
        apart = torch.stack(pictures).std(0, correction=0).mean(1).flatten(1)
        inside = None if mask is None else mask.flatten(1)
        return columns | {f"{SPREAD_PREFIX}images": _column(weighted_mean(apart, inside))}

    def _masked(
        self, rebuilt: Tensor, images: Tensor, values: Mapping[str, Tensor], mask: Tensor | None
    ) -> tuple[dict[str, Array], Tensor]:
        """Project again without the most suspect region, and rate all of the image by what comes out.

        The region is first filled with the reconstruction so far, so that neither encoder nor feature networks see it, and left
        out of the loss: an anomaly then no longer pulls its own reconstruction towards itself. `masked/<residual>` are the
        residuals of the image as it is; `masked/under_l1` and `masked/under_shift` the mean absolute and the length of the mean
        signed difference in the region. Every image has such a region, of the same size, whether it is anomalous or not.
        """
        whole = torch.ones_like(images[:, :1], dtype=torch.bool) if mask is None else mask
        suspect = torch.zeros_like(whole)
        for _ in range(self.parts.masked_rounds):
            suspect = suspected(strength(images, rebuilt, mask), whole)
            rebuilt = self.projector.project(torch.where(suspect, rebuilt, images), values, whole & ~suspect).images
        with torch.no_grad():
            residuals = self.projector.residuals(images, rebuilt, self.projector.features(images), values, mask)
        columns = {
            MASKED_PREFIX + name.removeprefix(RESIDUAL_PREFIX): _column(value)
            for name, value in residuals.items()
            if not _SAME_FOR_EVERY_RECONSTRUCTION.match(name)
        }
        signed, under = images - rebuilt, suspect.flatten(1)
        shift = torch.stack([weighted_mean(channel.flatten(1), under) for channel in signed.unbind(1)], dim=1)
        columns[f"{MASKED_PREFIX}under_l1"] = _column(weighted_mean(signed.abs().mean(1).flatten(1), under))
        columns[f"{MASKED_PREFIX}under_shift"] = _column(shift.square().mean(1).sqrt())
        return columns, rebuilt


def strength(images: Tensor, rebuilt: Tensor, mask: Tensor | None) -> Tensor:
    """How far images (B, C, *S) leave their reconstructions, (B, 1, *S): 0 outside the mask (B, 1, *S).

    The mean difference in the neighbourhood of 3 pixels a side, where opposite signs cancel; RMS over the channels.
    """
    pool = F.avg_pool2d if images.ndim == 4 else F.avg_pool3d
    inside = torch.ones_like(images[:, :1]) if mask is None else mask.to(images.dtype)
    near = pool((images - rebuilt) * inside, 3, stride=1, padding=1)
    share = pool(inside, 3, stride=1, padding=1).clamp(min=1e-6)
    return (near / share).square().mean(1, keepdim=True).sqrt() * inside


def suspected(strong: Tensor, mask: Tensor) -> Tensor:
    """The `SUSPECT` share of the mask (B, 1, *S) where `strong` is largest, and the neighbours of that: bool (B, 1, *S)."""
    flat = torch.where(mask, strong, -1.0).flatten(1)
    count = (mask.flatten(1).sum(1) * SUSPECT).ceil().long().clamp(min=1)
    least = flat.sort(dim=1, descending=True).values.gather(1, count[:, None] - 1)
    core = ((flat >= least) & (flat >= 0)).view_as(strong)
    grow = F.max_pool2d if strong.ndim == 4 else F.max_pool3d
    return (grow(core.float(), 3, stride=1, padding=1) > 0) & mask


def _column(value: Tensor) -> Array:
    return value.detach().cpu().double().numpy()
