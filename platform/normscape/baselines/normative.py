"""What is normal at each place, given what is known: a voxel-wise normative model (Marquand et al. 2016).

At each place, every channel of normal images is regressed on the known conditions by least squares; what the regression leaves is
taken for Gaussian. A place is a voxel of the atlas where positions are known, else a pixel of the image.

A value enters with its powers, an angle with the cosine and sine of its multiples, each less its mean and divided by its standard
deviation over the training images, so that the model starts from what is usual under average conditions. For brains it is fitted
to the training subjects' whole scans, each once. Where these come from several sites, each site has an effect of its own in the
fit, so that a site of old subjects is not taken for age; an image to be scored does not tell its site, so there the mean over the
sites stands, and the deviation holds the differences between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from normscape.baselines import Training
from normscape.baselines.places import BATCH, Grid, conditions_of, drawn_rows, patch_source
from normscape.config import AttributeConfig, Config
from normscape.datasets.batches import ImageBatch
from normscape.errors import ConfigError
from normscape.networks.values import centred_value
from normscape.scoring.maps import unit_volume

Position = Literal["known", "none"]
LEAST_SHARE = 0.1
"""Least standard deviation at a place, as a share of the one over all places."""


class NormativeModel:
    """Mean and standard deviation of every channel at every place, given the known conditions.

    Args:
        conditions: what is regressed on: `all` value attributes but the position, `none`, `shuffled` (all, but every training
            image has those of another: what knowing them is worth), or names of attributes.
        position: `known`: patches are compared at their place in the atlas, where that is known; `none`: patch with patch.
        degree: highest power of a value, and multiple of an angle.
        pseudo_images: weight, in images, of the mean over all places without slopes, and of the deviation over all places: it
            steadies places that few images show.

    Attributes:
        grid_: the places.
        names_: conditions that are regressed on.
        coefficients_: float32 `(F, C, places)`; the first one is the mean under average conditions.
        deviation_: float32 `(C, places)`.

    Raises:
        ValueError: a setting is out of its range.
    """

    grid_: Grid
    names_: tuple[str, ...]
    coefficients_: Tensor
    deviation_: Tensor

    def __init__(
        self,
        *,
        conditions: str | Sequence[str] = "all",
        position: Position = "known",
        degree: int = 1,
        pseudo_images: float = 2.0,
    ) -> None:
        if position not in get_args(Position):
            raise ValueError(f"position must be one of {', '.join(get_args(Position))}, found {position}")
        if degree < 1:
            raise ValueError(f"degree must be at least 1, found {degree}")
        if pseudo_images <= 0:
            raise ValueError(f"pseudo_images must be above 0, found {pseudo_images}")
        self.conditions, self.position, self.degree, self.pseudo_images = conditions, position, degree, pseudo_images

    def fit(self, training: Training) -> Self:
        """Learn from training images, or from the training subjects' whole scans.

        Raises:
            ConfigError: `conditions` names no value attribute.
            DataError: positions are known of images that are not cut from a prepared cohort.
        """
        self.device_ = training.device
        self.attributes_ = chosen_conditions(self.conditions, training.config)
        self.names_ = tuple(a.name for a in self.attributes_)
        self.grid_ = Grid.of(training, positions=self.position == "known")
        scans = self.grid_.frame is not None
        rows = _one_row_of_each_scan(training) if scans else drawn_rows(training, "normative")
        known = conditions_of(training, rows, shuffled=self.conditions == "shuffled", purpose="normative")
        raw = regressors(self.attributes_, known, len(rows), self.degree)
        self.centre_, self.scale_ = raw.mean(0), raw.std(0, correction=0)
        self.centre_[0], self.scale_[self.scale_ < 1e-9] = 0.0, 1.0
        x = torch.cat([self._scaled(raw), _site_columns(training, rows)], dim=1) if scans else self._scaled(raw)
        sums = _Sums(x.shape[1], training.healthy.shape[0], len(self.grid_), self.device_)
        done = 0
        for part, images, masks in _whole_scans(training, self.grid_, rows) if scans else _images(training, rows):
            sums.add(x[part], images, masks)
            done += len(part)
            training.progress(done, len(rows))
        self.coefficients_, self.deviation_ = sums.solve(raw.shape[1], self.pseudo_images)
        return self

    def expected(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of normal images at the places and under the conditions of these, `(B, C, *S)` each."""
        at = self.grid_.places(batch).to(self.device_)
        x = self._scaled(regressors(self.attributes_, batch.conditions, len(batch), self.degree)).to(self.device_).float()
        wide = (-1, *(1,) * (at.ndim - 1))
        mean = sum((x[:, f].view(wide) * part[:, at] for f, part in enumerate(self.coefficients_)), torch.zeros(()))
        return mean.transpose(0, 1), self.deviation_[:, at].transpose(0, 1).expand(len(batch), -1, *at.shape[1:])

    def z(self, batch: ImageBatch) -> Tensor:
        """Standard deviations by which images differ from what is expected, signed, `(B, C, *S)`; 0 outside the mask."""
        mean, deviation = self.expected(batch)
        z = (batch.images.to(self.device_) - mean) / deviation
        return z if batch.masks is None else z * batch.masks.to(self.device_)

    def to_tensors(self) -> dict[str, Tensor]:
        """The fitted model, for a safetensors file."""
        grid = {"shape": torch.tensor(self.grid_.shape), "low": torch.tensor(self.grid_.low)}
        grid |= {} if self.grid_.frame is None else {"frame": self.grid_.frame}
        fitted = {"coefficients": self.coefficients_, "deviation": self.deviation_, "centre": self.centre_, "scale": self.scale_}
        return grid | {name: tensor.cpu().contiguous() for name, tensor in fitted.items()}

    def restore(self, tensors: Mapping[str, Tensor], config: Config, device: torch.device) -> Self:
        """Undoes `to_tensors`, for a model of the same settings.

        Raises:
            KeyError: something is missing.
        """
        self.device_ = device
        self.attributes_ = chosen_conditions(self.conditions, config)
        self.names_ = tuple(a.name for a in self.attributes_)
        frame, place = tensors.get("frame"), config.position
        position = None if frame is None or place is None else place.name
        self.grid_ = Grid(tuple(tensors["shape"].tolist()), tuple(tensors["low"].tolist()), position, frame)
        self.coefficients_, self.deviation_ = tensors["coefficients"].to(device), tensors["deviation"].to(device)
        self.centre_, self.scale_ = tensors["centre"], tensors["scale"]
        return self

    def _scaled(self, columns: Tensor) -> Tensor:
        return (columns - self.centre_) / self.scale_


def chosen_conditions(asked: str | Sequence[str], config: Config) -> tuple[AttributeConfig, ...]:
    """The attributes that a setting names; see `NormativeModel`.

    Raises:
        ConfigError: one of them is no value attribute.
    """
    known = {a.name: a for a in config.value_attributes}
    if asked == "none":
        return ()
    if asked in ("all", "shuffled"):
        return tuple(a for a in known.values() if a != config.position)
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            f"conditions: {', '.join(unknown)} is no value attribute; allowed are all, none, shuffled, {', '.join(known)}"
        )
    return tuple(known[name] for name in names)


def regressors(attributes: Sequence[AttributeConfig], values: Mapping[str, Tensor], count: int, degree: int) -> Tensor:
    """Columns of a regression, float64 `(B, F)`: ones; of every condition the powers, or of an angle its waves.

    Args:
        attributes: the conditions; those with the unit `degrees` are angles.
        values: condition to known values `(B, d)`.
        count: B.
        degree: highest power or multiple.
    """
    columns = [torch.ones(count, 1, dtype=torch.float64)]
    for attribute in attributes:
        value = values[attribute.name].double()
        for power in range(1, degree + 1):
            if attribute.unit == "degrees":
                columns += [torch.deg2rad(power * value).cos(), torch.deg2rad(power * value).sin()]
            else:
                columns.append(centred_value(attribute, value) ** power)
    return torch.cat(columns, dim=1)


class _Sums:
    """Sums over images from which all places' regressions follow; memory does not grow with their number."""

    def __init__(self, terms: int, channels: int, places: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, places, dtype=torch.float64, device=device)

        self.xx, self.xy, self.yy = zeros(terms, terms), zeros(terms, channels), zeros(channels)

    def add(self, x: Tensor, images: Tensor, masks: Tensor | None) -> None:
        """Columns `(B, F)`, and images `(B, C, *S)` that cover all places, under their masks."""
        y = images.to(self.yy).flatten(2)
        inside = torch.ones_like(y[:, :1]) if masks is None else masks.to(self.yy).flatten(2)
        x = x.to(self.yy)
        self.xx += torch.einsum("bf,bg,bp->fgp", x, x, inside[:, 0])
        self.xy += torch.einsum("bf,bcp->fcp", x, y * inside)
        self.yy += (y.square() * inside).sum(0)

    def solve(self, kept: int, pseudo: float) -> tuple[Tensor, Tensor]:
        """Coefficients of the first columns `(kept, C, places)`, and the deviation from what they predict `(C, places)`."""
        overall = self.xy[0].sum(1) / self.xx[0, 0].sum()
        left = self.xx.permute(2, 0, 1) + pseudo * torch.eye(len(self.xx), dtype=self.xx.dtype, device=self.xx.device)
        right = self.xy.permute(2, 0, 1).clone()
        right[:, 0] += pseudo * overall
        found = torch.linalg.solve(left, right)[:, :kept].permute(1, 2, 0)
        xx, xy = self.xx[:kept, :kept], self.xy[:kept]
        rest = self.yy - 2 * (found * xy).sum(0) + torch.einsum("fcp,fgp,gcp->cp", found, xx, found)
        rest = rest.clamp(min=0)
        count = self.xx[0, 0]
        variance = (rest.sum(1) / count.sum())[:, None]
        own = ((rest + pseudo * variance) / (count + pseudo)).clamp(min=LEAST_SHARE**2 * variance).clamp(min=1e-12)
        return found.float(), own.sqrt().float()


_Part = tuple[Tensor, Tensor, Tensor | None]
"""Which of the rows, images `(B, C, *S)`, masks `(B, 1, *S)`."""


def _images(training: Training, rows: Tensor) -> Iterator[_Part]:
    for part in torch.arange(len(rows)).split(BATCH):
        batch = training.healthy.batch(rows[part])
        yield part, batch.images, batch.masks


def _one_row_of_each_scan(training: Training) -> Tensor:
    """A row of every scan that the training patches are cut from, int64 `(scans,)`."""
    _, first = np.unique(_scan_of_rows(training), return_index=True)
    return torch.from_numpy(first.astype(np.int64))


def _scan_of_rows(training: Training) -> np.ndarray:
    return patch_source(training).scan[training.healthy.samples.sample_id.numpy()]


def _whole_scans(training: Training, grid: Grid, rows: Tensor) -> Iterator[_Part]:
    """The scans of these rows on the grid, as patches see them, one at a time."""
    source = patch_source(training)
    box = tuple(slice(low, low + length) for low, length in zip(grid.low, grid.shape, strict=True))
    for number, scan in enumerate(_scan_of_rows(training)[rows.numpy()].tolist()):
        image = torch.from_numpy(unit_volume(source, scan)[box].copy())
        mask = torch.from_numpy(np.asarray(source.cohort.masks[scan])[box] > 0)
        yield torch.tensor([number]), image[None, None], mask[None, None]


def _site_columns(training: Training, rows: Tensor) -> Tensor:
    """Which site each of these scans comes from, less the sites' shares, float64 `(scans, sites)`; no column for one site."""
    table = patch_source(training).cohort.subjects
    sites = np.array([site or "" for site in table["site"].to_pylist()])[_scan_of_rows(training)[rows.numpy()]]
    found, which = np.unique(sites, return_inverse=True)
    columns = torch.nn.functional.one_hot(torch.from_numpy(which), len(found)).double()
    return (columns - columns.mean(0))[:, : len(found) if len(found) > 1 else 0]
