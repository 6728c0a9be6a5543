"""Families of synthetic anomalies, one file each.

A family is a class with `draw`, built from its name and the settings of a configuration entry. To add one, write the class in a
file of your own and name it `module:Class` in `evaluation.families`; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from normscape.config import PluginConfig
from normscape.datasets.batches import ImageBatch
from normscape.plugins import build


@dataclass(frozen=True)
class Scene:
    """What all images of an experiment have in common, as far as anomalies depend on it."""

    dims: int
    """2 or 3."""
    spacing_mm: float | None
    """Side of a voxel; None where images have no such scale."""


@dataclass(frozen=True)
class AnomalyBatch:
    """B images with an anomaly each."""

    images: Tensor
    """float32 (B, C, *S) in [-1, 1]; as before wherever the mask is 0."""
    masks: Tensor
    """float32 (B, 1, *S) in [0, 1]: how much of a place is anomalous. All zero where the family finds no place for one."""
    size: Tensor
    """float32 (B,): radius of the ball (disc) of the same volume (area), in mm, or in pixels where there is no such scale."""
    contrast: Tensor
    """float32 (B,): mean absolute change under the mask, in intensity units: 0 invisible, 2 white on black."""


class AnomalyFamily(Protocol):
    """Draws one kind of anomaly."""

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """Draw an anomaly into a copy of every image.

        Each is a pure function of its image, mask, (seed, sample id) and donor: never of the batch or the order of calls.

        Args:
            batch: normal images, or whole volumes: any side.
            seed: the experiment's seed.
            sample_ids: (B,) not negative.
            scene: dimension and spacing.
            donors: a normal image of another subject for each, of the same shape; for families that transplant.

        Raises:
            DataError: the family cannot be drawn into such images, for example lesions into pictures.
        """


_HERE = "normscape.datasets.anomalies"
FAMILIES: dict[str, str] = {
    "standard": f"{_HERE}.blots:StandardBlots",
    "clear": f"{_HERE}.blots:ClearBlots",
    "matched": f"{_HERE}.blots:MatchedBlots",
    "textured": f"{_HERE}.blots:TexturedBlots",
    "foreign": f"{_HERE}.foreign:Foreign",
    "tumour": f"{_HERE}.masses:Tumour",
    "haemorrhage": f"{_HERE}.masses:Haemorrhage",
    "infarct": f"{_HERE}.infarct:Infarct",
    "white_matter": f"{_HERE}.white_matter:WhiteMatterLesions",
    "atrophy": f"{_HERE}.atrophy:Atrophy",
    "ghosting": f"{_HERE}.artefacts:Ghosting",
    "motion": f"{_HERE}.artefacts:Motion",
    "spike": f"{_HERE}.artefacts:Spike",
    "wrap": f"{_HERE}.artefacts:Wrap",
}
"""Built-in families: name to `module:Class`."""


def load_family(entry: PluginConfig) -> AnomalyFamily:
    """The family that a configuration entry names.

    Raises:
        ConfigError: there is none, or it does not take these settings.
    """
    family: AnomalyFamily = build(entry, FAMILIES, kind="anomaly family")
    return family
