"""Families and detectors for tests, small enough to run in a moment; named `tests.evaluation.toys:Class` in configurations."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from normscape.baselines import Scores, Training
from normscape.datasets.anomalies import AnomalyBatch, Scene
from normscape.datasets.batches import ImageBatch
from normscape.errors import DataError

HERE = "tests.evaluation.toys"


def family(name: str, use: str = "Block", **settings: Any) -> dict[str, Any]:
    """An entry of `evaluation.families`."""
    return {"name": name, "use": f"{HERE}:{use}", "settings": settings}


def detector(name: str, use: str = "Deviation", **settings: Any) -> dict[str, Any]:
    """An entry of `evaluation.detectors`."""
    return {"name": name, "use": f"{HERE}:{use}", "settings": settings}


def evaluation(**changes: Any) -> dict[str, Any]:
    """A section `evaluation`: two families, two detectors, two seeds."""
    return {
        "families": [family("dark", value=-1.0), family("grey", value=0.1)],
        "training_families": ["dark"],
        "detectors": [detector("near"), detector("blind", "Blind")],
        "seeds": [0, 1],
        "validation_images": 16,
        "test_images": 24,
        "false_positive_rates": [0.1, 0.3],
        "bootstrap_samples": 60,
        "batch_size": 8,
        "own": ["near"],
    } | changes


class Block:
    """A block of one intensity at a place that (seed, sample id) decide; every `empty_every`-th sample has no place for one."""

    def __init__(self, value: float = -1.0, side: int = 3, empty_every: int = 0) -> None:
        self.value, self.side, self.empty_every = value, side, empty_every

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""
        masks = torch.zeros(len(batch), 1, *batch.images.shape[2:])
        for mask, sample in zip(masks, sample_ids, strict=True):
            if self.empty_every and sample % self.empty_every == 0:
                continue
            place = np.random.default_rng([seed, sample])
            inside = np.argwhere(batch.masks[0, 0].numpy()) if batch.masks is not None else None
            sides = batch.images.shape[2:]
            corner = (
                [int(place.integers(0, n - self.side + 1)) for n in sides]
                if inside is None
                else np.minimum(inside[place.integers(len(inside))], np.array(sides) - self.side).tolist()
            )
            mask[(0, *(slice(c, c + self.side) for c in corner))] = 1.0
        if batch.masks is not None:
            masks = masks * batch.masks
        images = torch.where(masks > 0, torch.tensor(self.value), batch.images)
        under = masks.flatten(1).sum(1)
        change = ((images - batch.images).abs().mean(1, keepdim=True) * masks).flatten(1).sum(1)
        return AnomalyBatch(images, masks, under ** (1 / scene.dims) / 2, change / under.clamp(min=1))


class Impossible:
    """Cannot be drawn into anything."""

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""
        raise DataError("no place for it")


class Deviation:
    """Mean absolute difference to the nearest of a few training images; its map is that to their mean."""

    supervision: Literal["none", "synthetic"] = "none"

    def __init__(self, kept: int = 24) -> None:
        self.kept = kept

    def fit(self, training: Training) -> Self:
        """Keep some images."""
        rows = training.healthy.random_rows(self.kept, torch.Generator().manual_seed(training.seed))
        self.images_ = training.healthy.batch(rows).images
        return self

    def decision_function(self, batch: ImageBatch) -> Scores:
        """Distance to the nearest, (B,)."""
        return torch.cdist(batch.images.flatten(1), self.images_.flatten(1), p=1).amin(1).double().numpy()

    def anomaly_map(self, batch: ImageBatch) -> Tensor | None:
        """Distance to the mean, (B, 1, *S)."""
        found = (batch.images - self.images_.mean(0)).abs().mean(1, keepdim=True)
        return found if batch.masks is None else found * batch.masks


class Blind:
    """Scores that have nothing to do with anomalies; it has no map."""

    supervision: Literal["none", "synthetic"] = "none"

    def fit(self, training: Training) -> Self:
        """Nothing to learn."""
        self.seed_ = training.seed
        return self

    def decision_function(self, batch: ImageBatch) -> Scores:
        """The sum of all intensities as whole numbers, scrambled, (B,)."""
        total = ((batch.images + 1) * 127.5).round().long().flatten(1).sum(1).double().numpy()
        return np.sin(12.9898 * total + self.seed_)

    def anomaly_map(self, batch: ImageBatch) -> Tensor | None:
        """It cannot tell."""
        return None


class Learner(Deviation):
    """Learns a direction from synthetic anomalies."""

    supervision: Literal["none", "synthetic"] = "synthetic"

    def fit(self, training: Training) -> Self:
        """The mean image with an anomaly less the one without."""
        rows = training.healthy.random_rows(self.kept, torch.Generator().manual_seed(training.seed))
        normal = training.healthy.batch(rows)
        self.images_ = normal.images
        self.direction_ = (training.anomalous(normal, rows).images - normal.images).mean(0).flatten()
        return self

    def decision_function(self, batch: ImageBatch) -> Scores:
        """How far an image lies in that direction, (B,)."""
        return ((batch.images - self.images_.mean(0)).flatten(1) @ self.direction_).double().numpy()


class Fails(Deviation):
    """Raises: always, or only with some seeds; in `fit`, or when it is asked for scores."""

    def __init__(self, seeds: Sequence[int] = (), scoring: bool = False) -> None:
        super().__init__()
        self.seeds, self.scoring = seeds, scoring

    def fit(self, training: Training) -> Self:
        """Fail now, or later."""
        self.fails_ = not self.seeds or training.seed in self.seeds
        if self.fails_ and not self.scoring:
            raise RuntimeError("nothing to hold on to")
        return super().fit(training)

    def decision_function(self, batch: ImageBatch) -> Scores:
        """Not numbers, when it fails."""
        scores = super().decision_function(batch)
        return scores * np.nan if self.fails_ else scores


class StageReader(Deviation):
    """Reads the folder of a stage and says so."""

    stages: ClassVar[tuple[str, ...]] = ("gan",)


class QuietReader(Deviation):
    """Reads the folder of a stage and does not say so."""

    def __init__(self, stage: str = "prepare") -> None:
        super().__init__()
        self.stage = stage

    def fit(self, training: Training) -> Self:
        """Look into the folder."""
        assert training.folders[self.stage].exists()
        return super().fit(training)


class Saving(Deviation):
    """Says that another detector saved it ten seconds in `fit`, and one second for every image that it has scored so far."""

    def fit(self, training: Training) -> Self:
        """As if it had found something."""
        self.saved_seconds = 10.0
        return super().fit(training)

    def decision_function(self, batch: ImageBatch) -> Scores:
        """The same scores, and more saved."""
        self.saved_seconds += len(batch)
        return super().decision_function(batch)


class Killed(Deviation):
    """Kills its process, or is interrupted, the first time that it is fitted with one seed."""

    def __init__(self, marker: str, seed: int = 1, hard: bool = False) -> None:
        super().__init__()
        self.marker, self.seed, self.hard = Path(marker), seed, hard

    def fit(self, training: Training) -> Self:
        """Die once."""
        if training.seed == self.seed and not self.marker.exists():
            self.marker.touch()
            if self.hard:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        return super().fit(training)


class AlwaysKilled(Deviation):
    """Kills its process whenever it is fitted."""

    def fit(self, training: Training) -> Self:
        """Die."""
        os.kill(os.getpid(), signal.SIGKILL)
        return self
