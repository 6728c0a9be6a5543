"""The scored system as one object: from images and known conditions to anomaly scores.

It is put together from the folders of a finished run, or from a package: a folder that holds nothing but what scoring needs
(`config.yaml`, and below the name of each stage its weights, style space and fitted detectors).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from normscape.config import AttributeConfig, Config
from normscape.configio import load_config
from normscape.datasets.samples import to_uint8, to_unit_range
from normscape.errors import CheckpointError, DataError
from normscape.inversion.projector import Projection, Projector
from normscape.networks.values import denormalize_value
from normscape.scoring.conformal import Calibration
from normscape.scoring.detectors import Array, main_detector
from normscape.scoring.features import NETWORK_COLUMN
from normscape.scoring.maps import Rated
from normscape.stages.calibration import CONDITIONS, CONFORMAL_NAME, STEPS
from normscape.stages.fitted import FittedDetector, load_detectors
from normscape.stages.models import load_projector
from normscape.stages.network import TrainedNetwork, load_network
from normscape.stages.system_files import EXTRAS, PARTS, PERCEPTUAL, SCANS_NAME, finished_folders


@dataclass(frozen=True)
class ScoredSystem:
    """Projects images and scores them with the detectors of a finished run.

    Attributes:
        config: the experiment.
        projector: generator, controllers, style space and everything else that projects.
        detectors: the fitted detectors that lie in the score stage's folder, by name; `forest` and `l1` among them.
        healthy: scores of healthy images that nothing was fitted to, for p-values; None where a run has none.
        healthy_scans: the same of whole scans; None where none were mapped.
        network: the conditional network; None where the experiment has none.

    Example:
        >>> system = ScoredSystem.from_run(Path("runs/chairs-demo"))  # doctest: +SKIP
        >>> system.score(images, {"angle": angles_degrees})["anomaly_score"]  # doctest: +SKIP
    """

    config: Config
    projector: Projector
    detectors: Mapping[str, FittedDetector]
    healthy: Calibration | None = None
    healthy_scans: Calibration | None = None
    network: TrainedNetwork | None = None

    @classmethod
    def load(cls, config: Config, folders: Mapping[str, Path], device: torch.device) -> ScoredSystem:
        """Put the system together.

        Args:
            config: the experiment.
            folders: the finished folders of the stages in `PARTS` and maybe `EXTRAS`, by name.
            device: where to compute.

        Raises:
            CheckpointError: weights are missing, damaged, or of other networks.
            DataError: a detector's file is missing or damaged.
        """
        healthy = Calibration.load(folders["score"] / CONFORMAL_NAME)
        scans = Calibration.load(folders["brains"] / SCANS_NAME) if "brains" in folders else None
        projector, network = load_projector(config, folders, device), load_network(config, folders, device)
        return cls(config, projector, load_detectors(folders["score"]), healthy, scans, network)

    @classmethod
    def from_run(cls, run_folder: Path, device: torch.device | None = None, *, steps: int | None = None) -> ScoredSystem:
        """The system of a finished run, under the configuration that the run folder holds.

        Args:
            run_folder: `runs/<name>`.
            device: where to compute.
            steps: of the projection; `projection.steps`, at which the detectors were fitted, when None.

        Raises:
            UserError: a stage is not finished; see `load` for the others.
        """
        config = load_config(run_folder / "config.yaml")
        folders = finished_folders(config, run_folder)
        return cls.load(projecting_with(config, steps), folders, device or torch.device("cpu"))

    @classmethod
    def from_package(cls, folder: Path, device: torch.device | None = None, *, steps: int | None = None) -> ScoredSystem:
        """The system that `write_package` wrote; `steps` as in `from_run`.

        Raises:
            CheckpointError: a part of the package is missing.
        """
        if not (folder / "config.yaml").is_file():
            raise CheckpointError(f"{folder}: expected a packaged system, found no config.yaml")
        config = load_config(folder / "config.yaml")
        weights = sorted((folder / PERCEPTUAL).glob("*"))
        if weights:
            projection = config.projection.model_copy(update={"perceptual_path": weights[0]})
            config = config.model_copy(update={"projection": projection})
        folders = {stage: folder / stage for stage in (*PARTS, *EXTRAS)}
        return cls.load(projecting_with(config, steps), folders, device or torch.device("cpu"))

    @property
    def threshold(self) -> float:
        """Anomaly scores above it are called anomalous; stored with the detector."""
        return self.detectors[self.main].detector.threshold_

    @property
    def main(self) -> str:
        """The detector that gives the anomaly score."""
        return main_detector(self.detectors)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, *S) of an image."""
        return (self.config.image_channels, *[self.config.image_size] * self.config.dims)

    def score(
        self,
        images: ArrayLike | Tensor,
        conditions: Mapping[str, ArrayLike],
        *,
        masks: Tensor | None = None,
        reconstructions: bool = False,
    ) -> pa.Table:
        """Score images. One image gets the same numbers alone and among others.

        Args:
            images: `(N, C, *S)`, uint8 in 0..255 or floats in [-1, 1].
            conditions: value attribute to its known values in natural units, `(N, D)`; `(N,)` where D is 1.
            masks: what counts in the images, bool `(N, 1, *S)`; everything when None.
            reconstructions: add the column `reconstruction`.

        Returns:
            A table of N rows: `anomaly_score` (higher is more abnormal), `anomalous` (0 or 1), `p_value` where healthy images
            are known (`normscape.scoring.conformal`), `<detector>_score`, columns of the conditions,
            `length/<sub-space>/<resolution>` (whitened), `residual_*` (of images in [-1, 1]), and
            `reconstruction` (uint8, C x S values in a row).

        Raises:
            DataError: images or conditions are not what the configuration says.
        """
        pictures = self._images(images)
        values = {a.name: _values(a, conditions, len(pictures)) for a in self.config.value_attributes}
        unknown = sorted(set(conditions) - set(values))
        if unknown:
            raise DataError(f"conditions: {', '.join(unknown)} unknown; the system knows {', '.join(values) or 'none'}")
        size = self.config.projection.batch_size
        parts = []
        for i in range(0, len(pictures), size):
            known = {name: value[i : i + size] for name, value in values.items()}
            parts.append(
                self._batch(pictures[i : i + size], known, None if masks is None else masks[i : i + size], reconstructions)
            )
        if not parts:
            raise DataError("images: expected at least one image, found none")
        return pa.concat_tables(parts)

    def rate(self, images: Tensor, values: Mapping[str, Tensor], masks: Tensor | None = None) -> Rated:
        """Anomaly scores of one batch by the main detector, the reconstructions, and what exceeds the usual where.

        Args:
            images: float `(B, C, *S)` in [-1, 1]; what is scored is what the detectors were fitted on, images of 8 bits.
            values: value attribute to known conditions `(B, D)` in the attribute's unit.
            masks: what counts, bool `(B, 1, *S)`; everything when None.

        Returns:
            Scores float64 `(B,)`, images `(B, C, *S)`, the excess `(B, 1, *S)` where places are known, and the gradient
            `(B, 1, *S)` where there is an encoder.
        """
        images = to_unit_range(to_uint8(images))
        projection = self.projector.project(images, values, masks)
        columns = self._columns(images, values, masks, projection)
        fitted = self.detectors[self.main]
        scores = torch.from_numpy(fitted.detector.decision_function(fitted.matrix(columns)))
        excess, gradient = (what(images, values, masks) for what in (self.projector.excess, self.projector.gradient))
        return Rated(scores, projection.images, excess, gradient)

    @torch.no_grad()
    def read(self, name: str, images: Tensor) -> Tensor:
        """What an attribute's auxiliary network reads from images `(B, C, *S)` in [-1, 1]: `(B, D)`, in the attribute's unit."""
        network = self.projector.auxiliaries[name]
        return denormalize_value(network.attribute, network(images.to(self.projector.device))).cpu()

    def p_values(self, scores: Tensor, values: Mapping[str, Tensor], *, one_subject: bool = False) -> Array | None:
        """p of anomaly scores `(B,)` under known conditions `(B, D)`, `(B,)`.

        None where no healthy images are known, or where those were projected with another number of steps. At most 5 % of the
        images of new healthy subjects have a p of at most 5 %, see `normscape.scoring.conformal`. `one_subject`: these are all
        the images of one subject; p is then their rank among those of the healthy subjects and its own, and can be smaller.
        """
        if self.healthy is None or self.healthy.settings.get(STEPS) != self.config.projection.steps:
            return None
        columns = condition_columns(self.config, values)
        names = self.healthy.settings.get(CONDITIONS, [])
        known = np.stack([columns[name] for name in names], axis=1) if names else np.zeros((len(scores), 0))
        healthy, known = self.healthy.scores[self.main], known.astype(np.float64)
        if one_subject:
            return healthy.pooled_p_value(scores.numpy(), np.zeros(len(scores)), known)
        return healthy.p_value(scores.numpy(), known)

    def _batch(self, images: Tensor, values: Mapping[str, Tensor], masks: Tensor | None, reconstructions: bool) -> pa.Table:
        projection = self.projector.project(images, values, masks)
        columns = self._columns(images, values, masks, projection)
        scores = {name: fitted.detector.decision_function(fitted.matrix(columns)) for name, fitted in self.detectors.items()}
        main = scores[self.main]
        table: dict[str, Any] = {"anomaly_score": main, "anomalous": (main > self.threshold).astype(np.int64)}
        p = self.p_values(torch.from_numpy(main), values)
        table |= {} if p is None else {"p_value": p}
        table |= {f"{name}_score": score for name, score in scores.items()} | columns
        if reconstructions:
            flat = to_uint8(projection.images).cpu().flatten(1).numpy()
            table["reconstruction"] = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
        return pa.table(table)

    def _columns(
        self, images: Tensor, values: Mapping[str, Tensor], masks: Tensor | None, projection: Projection
    ) -> dict[str, NDArray[np.float32]]:
        """Everything that is known of a batch, `(B,)` each, named as in the table of projections."""
        columns = condition_columns(self.config, values) | projection_columns(self.projector, projection)
        return columns | ({} if self.network is None else {NETWORK_COLUMN: self.network.log_odds(images, values, masks).numpy()})

    def _images(self, images: ArrayLike | Tensor) -> Tensor:
        """float32 in [-1, 1]."""
        given = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
        if tuple(given.shape[1:]) != self.image_shape:
            raise DataError(f"images: expected shape (N, {', '.join(map(str, self.image_shape))}), found {tuple(given.shape)}")
        if given.dtype == torch.uint8:
            return to_unit_range(given)
        if not given.is_floating_point():
            raise DataError(
                f"images: expected uint8 in 0..255 or floats in [-1, 1], found {str(given.dtype).removeprefix('torch.')}"
            )
        if not bool(torch.isfinite(given).all()) or (given.numel() and float(given.abs().max()) > 1.0):
            raise DataError("images: expected floats in [-1, 1], found values outside")
        return given.float()


def projecting_with(config: Config, steps: int | None) -> Config:
    """The same experiment with another number of projection steps; unchanged when None."""
    if steps is None:
        return config
    return config.model_copy(update={"projection": config.projection.model_copy(update={"steps": steps})})


def projection_columns(projector: Projector, projection: Projection) -> dict[str, NDArray[np.float32]]:
    """Lengths and residuals of a batch, `(B,)` each, named as in the table of projections."""
    columns = {}
    for name, lengths in projection.lengths().items():
        for resolution, r in zip(projector.generator.resolutions, lengths.cpu().numpy().T, strict=True):
            columns[f"length/{name}/{resolution}"] = r
    return columns | {name: value.cpu().numpy() for name, value in projection.residuals.items()}


def condition_columns(config: Config, values: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Conditions of a batch as columns `(B,)`, named as in the table of projections."""
    columns: dict[str, NDArray[np.float32]] = {}
    for attribute in config.value_attributes:
        value, column = values[attribute.name].numpy(), attribute.column or ""
        names = [column] if value.shape[1] == 1 else [f"{column}_{i}" for i in range(value.shape[1])]
        columns |= dict(zip(names, value.T, strict=True))
    return columns


def _values(attribute: AttributeConfig, conditions: Mapping[str, ArrayLike], count: int) -> Tensor:
    """One attribute's conditions as float32 `(N, D)`."""
    if attribute.name not in conditions:
        raise DataError(f"conditions: `{attribute.name}` is missing; expected ({count}, {attribute.output_dim}) {attribute.unit}")
    try:
        given = np.array(conditions[attribute.name], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"conditions: `{attribute.name}` must be numbers, found something else ({error})") from error
    value = given[:, None] if given.ndim == 1 else given
    if value.shape != (count, attribute.output_dim):
        raise DataError(f"conditions: `{attribute.name}` must have shape ({count}, {attribute.output_dim}), found {given.shape}")
    if not np.isfinite(value).all():
        raise DataError(f"conditions: `{attribute.name}` must be finite, found NaN or infinity")
    return torch.from_numpy(value)
