"""Projected training images, and what is usual among the normal ones: the features of the conditional detectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold
from torch import Tensor

from normscape.baselines import Training
from normscape.baselines.known import BOTH, NONE, SHUFFLED
from normscape.datasets.batches import ImageBatch
from normscape.errors import DataError
from normscape.evaluation.inverting import Inverted, Inverter, Parts
from normscape.evaluation.linear import LinearResidual
from normscape.scoring.conditions import Array
from normscape.scoring.density import StyleDensity
from normscape.scoring.expected import LEVEL_PREFIX, Levels
from normscape.training.seeding import seeded

FOLDS = 5
"""Folds by subject in which training images are compared with what is usual among the others."""
LEAST_NORMAL = 4
"""Normal images that can say what is usual."""

Columns = dict[str, Array]
Chooser = Callable[[Sequence[str]], list[str]]
"""Columns of projected images to those that are levelled."""


@dataclass(frozen=True)
class Usual:
    """What is usual among normal images under their conditions.

    Attributes:
        density: of their styles; None where it is left out.
        levels: of their columns; None where they are left out.
        levelled: those columns, in order.
    """

    density: StyleDensity | None
    levels: Levels | None
    levelled: tuple[str, ...]

    @classmethod
    def fit(cls, normal: Inverted, levelled: Sequence[str], parts: Parts, resolutions: tuple[int, ...], *, seed: int) -> Self:
        """Learn from normal images.

        Args:
            normal: the images.
            levelled: columns to level.
            parts: which of density and levels are wanted.
            resolutions: of the coordinates.
            seed: of the regressions' bases.
        """
        density = levels = None
        if parts.density:
            density = StyleDensity.fit(normal.coordinates, normal.conditions, resolutions, seed=seed)
        if parts.levels:
            levels = Levels.fit(matrix(normal.columns, levelled), normal.conditions, seed=seed)
        return cls(density, levels, tuple(levelled))

    def columns(self, images: Inverted) -> Columns:
        """`density/...` and `level/...` of images, (B,) each, as far as they are wanted."""
        found: Columns = {}
        if self.density is not None:
            found |= self.density.columns(images.coordinates, images.conditions)
        if self.levels is not None:
            z = self.levels.z(matrix(images.columns, self.levelled), images.conditions)
            found |= {f"{LEVEL_PREFIX}{name}": z[:, place] for place, name in enumerate(self.levelled)}
        return found


@dataclass(frozen=True)
class Learned:
    """Training images as a detector sees them.

    Attributes:
        columns: of the N images, (N,) each.
        label: 0 normal, 1 with an anomaly, (N,).
        subject: whose image each is, (N,).
    """

    columns: Columns
    label: NDArray[np.int64]
    subject: NDArray[np.str_]


class ConditionalFeatures:
    """Features of images by projection, learned from training images.

    Args:
        parts: what to do.
    """

    inverter_: Inverter
    usual_: Usual
    linear_: LinearResidual | None

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def fit(self, training: Training, *, anomalies: bool, levelled: Chooser) -> Learned:
        """Project training images, and learn what is usual among the normal ones.

        An image's own density and levels are those of folds that its subject is not in: else normal images, which took part in
        the fit, would look more usual than any new one, and a forest would learn just that.

        Args:
            training: what there is to learn from.
            anomalies: put a synthetic anomaly into every second image.
            levelled: which columns are compared with what is usual.

        Raises:
            ConfigError: the settings do not fit the experiment.
            DataError: the experiment was not run, or too few normal images or subjects to learn from.
        """
        images, label, rows, seen = self._projected(training, anomalies=anomalies)
        subject = training.healthy.subject[rows.numpy()]
        folds = min(FOLDS, len(np.unique(subject)))
        if folds < 2:
            raise DataError("a conditional detector needs images of at least two training subjects")
        split = list(GroupKFold(folds).split(label, groups=subject))
        self.linear_ = self._linear()
        if self.linear_ is not None:
            self.linear_.fit(training)
            images = self._with_linear(training, images, seen, [set(subject[own]) for _, own in split], subject)
        chosen = levelled(list(images.columns))

        def usual(normal: NDArray[np.intp]) -> Usual:
            if len(normal) < LEAST_NORMAL:
                raise DataError(
                    f"a conditional detector needs more training images: a fold of {len(label)} has {len(normal)} normal"
                )
            return Usual.fit(images.rows(normal), chosen, self.parts, self.inverter_.resolutions, seed=training.seed)

        self.usual_ = usual(np.flatnonzero(label == 0))
        columns = dict(images.columns)
        for others, own in split:
            for name, values in usual(others[label[others] == 0]).columns(images.rows(own)).items():
                columns.setdefault(name, np.empty(len(label)))[own] = values
        return Learned(columns, label, subject)

    def _linear(self) -> LinearResidual | None:
        """The linear generator that the settings ask for, under the conditions that they leave."""
        if not self.parts.linear:
            return None
        which, place = self.parts.conditions, self.inverter_.config.position
        if which in (BOTH, SHUFFLED):
            return LinearResidual(self.parts.linear, conditions="all" if which == BOTH else "shuffled")
        here = place is not None and which == place.name
        return LinearResidual(self.parts.linear, conditions="none" if here or which == NONE else (which,), position=here)

    def _with_linear(
        self, training: Training, images: Inverted, seen: ImageBatch, held_out: list[set[str]], subject: NDArray[np.str_]
    ) -> Inverted:
        """The same with the linear residuals of components that were learned without the subjects of an image's fold."""
        columns: Columns = {}
        everybody = set(training.healthy.subject)
        for own in held_out:
            one = self._linear()
            assert one is not None
            one.fit(training, sorted(everybody - own))
            rows = np.flatnonzero(np.isin(subject, sorted(own)))
            for name, values in one.columns(seen.rows(torch.from_numpy(rows))).items():
                columns.setdefault(name, np.empty(len(subject)))[rows] = values
        return replace(images, columns=dict(sorted((images.columns | columns).items())))

    def _projected(self, training: Training, *, anomalies: bool) -> tuple[Inverted, NDArray[np.int64], Tensor, ImageBatch]:
        """Training images, every second one with an anomaly where that is asked for: projected, their labels, rows and pixels."""
        wanted = training.config.projection.train_samples if self.parts.images is None else self.parts.images
        rows = training.healthy.random_rows(min(training.images, wanted), seeded(training.seed, "conditional", "images"))
        parts = rows.split(training.config.projection.batch_size)
        known = [training.healthy.batch(part).conditions for part in parts]
        pool = {name: torch.cat([conditions[name] for conditions in known]) for name in known[0]}
        self.inverter_ = Inverter(
            training.config, training.folders, self.parts, pool, seed=training.seed, device=training.device, kept=training.kept
        )
        found, labels, seen, done = [], [], [], 0
        for part in parts:
            batch = training.healthy.batch(part)
            label = torch.zeros(len(part), dtype=torch.int64)
            odd = ((torch.arange(len(part)) + done) % 2).nonzero().squeeze(1)
            if anomalies and len(odd):
                drawn = training.anomalous(batch.rows(odd), part[odd])
                batch = batch.with_images(batch.images.index_copy(0, odd, drawn.images))
                label[odd] = (drawn.masks.flatten(1).amax(1) > 0).long()  # a family may find no place for an anomaly
            found.append(self.inverter_.invert_without_maps(batch))
            labels.append(label)
            seen.append(batch)
            done += len(part)
            training.progress(done, len(rows))
        return Inverted.together(found), torch.cat(labels).numpy(), rows, ImageBatch.together(seen)

    def columns(self, batch: ImageBatch) -> Columns:
        """All columns of projected images, (B,) each."""
        return self._all(self.inverter_.invert_without_maps(batch), batch)

    def of(self, batch: ImageBatch) -> tuple[Inverted, Columns]:
        """Projected images with their maps, and all their columns, (B,) each."""
        images = self.inverter_.invert(batch)
        return images, self._all(images, batch)

    def _all(self, images: Inverted, batch: ImageBatch) -> Columns:
        if self.linear_ is not None:
            images = replace(images, columns=images.columns | self.linear_.columns(batch))
        return images.columns | self.usual_.columns(images)


def matrix(columns: Mapping[str, Array], names: Sequence[str]) -> Array:
    """Columns side by side, (N, len(names))."""
    return np.stack([columns[name] for name in names], axis=1)
