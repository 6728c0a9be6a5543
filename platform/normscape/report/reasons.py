"""Why an image got its score, in words: the features that moved the forest most, beside what is usual for normal images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normscape.errors import DataError
from normscape.report.source import Source
from normscape.report.words import feature_name, significant
from normscape.scoring.attribution import Attribution, forest_attribution
from normscape.scoring.features import CALIBRATION, read_projections
from normscape.scoring.forest import ForestDetector

MOST = 3
"""Features that are named for an image."""
_RESIDUALS = (
    (r"l1", "mean difference"),
    (r"l2", "mean squared difference"),
    (r"top1", "difference in the worst 1 % of the places"),
    (r"local", "difference in the worst neighbourhood"),
    (r"patch(\d+)", "largest foreign patch, 1/{0} of the side"),
    (r"flat(\d+)", "largest foreign patch in a flat place, 1/{0} of the side"),
    (r"peak\d+", "how much the worst place stands out"),
    (r"ssim", "structural dissimilarity"),
    (r"feature(\d+)_worst", "perceptual difference {0}, worst place"),
    (r"feature(\d+)", "perceptual difference {0}, mean"),
    (r"discriminator(\d+)_worst", "discriminator's difference {0}, worst place"),
    (r"discriminator(\d+)", "discriminator's difference {0}, mean"),
    (r"output_(.+)", "{0} of the image against that of the reconstruction"),
    (r"condition_(.+)", "{0} read from the image against the known one"),
)
"""What follows `residual_` in a column's name, and what it measures; see `Projector.residuals`."""


@dataclass(frozen=True)
class Reason:
    """One feature's part in a score.

    Attributes:
        feature: in words.
        column: its name in the table.
        change: by how much it moved the score.
        value: of the image.
        usual: median of normal images.
    """

    feature: str
    column: str
    change: float
    value: float
    usual: float

    @property
    def sentence(self) -> str:
        """For example `+0.12 largest foreign patch, 1/8 of the side: 0.31, above the usual 0.18`."""
        side = "above" if self.value > self.usual else "below" if self.value < self.usual else "at"
        sign = "+" if self.change > 0 else "−"
        return (
            f"{sign}{abs(self.change):.2f} {self.feature}: {significant(self.value)}, {side} the usual {significant(self.usual)}"
        )


@dataclass(frozen=True)
class Reasons:
    """Reasons of the forest's scores of some rows.

    Attributes:
        bias: where every score starts.
        compared: whose median is the usual.
        of: row of the projections -> its reasons, the strongest first.
    """

    bias: float
    compared: str
    of: dict[int, list[Reason]]


def forest_reasons(source: Source, chosen: Sequence[int]) -> Reasons | None:
    """Reasons of the forest's scores of some test rows; None where the forest is missing or did not give these scores.

    Args:
        source: the run.
        chosen: rows of the table of projections, of the test split: what the forest saw of them is what stands in the table.
    """
    forest_file = source.path("score", "forest.skops")
    table_file = source.path("project", "projections.parquet")
    recorded = source.table("score", "scores.parquet", "forest_score")
    if forest_file is None or table_file is None or recorded is None or not len(chosen):
        return None
    try:
        detector, names = ForestDetector.load(forest_file)
        table = read_projections(table_file)
        features = table.features(names)
    except DataError:
        return None
    rows = np.asarray(chosen)
    found = forest_attribution(detector.forest_, features[rows])
    score = found.bias + found.contributions.sum(axis=1)
    if len(recorded["forest_score"]) != len(table) or not np.allclose(score, recorded["forest_score"][rows], atol=1e-6):
        return None
    split = CALIBRATION if (table.split == CALIBRATION).any() else "train"
    usual = np.median(features[(table.split == split) & (table.label == 0)], axis=0)
    of = {int(row): _reasons(found, i, names, features[row], usual) for i, row in enumerate(rows)}
    return Reasons(found.bias, f"the median of the normal {'calibration' if split == CALIBRATION else 'training'} images", of)


def _reasons(
    found: Attribution, i: int, names: Sequence[str], values: NDArray[np.float64], usual: NDArray[np.float64]
) -> list[Reason]:
    return [
        Reason(feature_words(names[j]), names[j], float(found.contributions[i, j]), float(values[j]), float(usual[j]))
        for j in found.strongest(i, MOST)
    ]


def feature_words(column: str) -> str:
    """`residual_patch8` -> `largest foreign patch, 1/8 of the side`; unknown columns keep their name."""
    if column.startswith("residual_"):
        for pattern, text in _RESIDUALS:
            match = re.fullmatch(pattern, column.removeprefix("residual_"))
            if match:
                return text.format(*(part.replace("_", " ") for part in match.groups()))
    if column.startswith("length/"):
        _, subspace, *resolution = column.split("/")
        return " at resolution ".join([f"length of the {subspace} style".replace("_", " "), *resolution])
    return feature_name(column)
