"""Conformal p-values from healthy subjects: how often a healthy one scores as high, with a promise.

Split conformal prediction (Vovk, Gammerman & Shafer 2005; Angelopoulos & Bates 2021) turns any score into a p-value by the ranks
of scores of calibration images that nothing was fitted to. It needs them to be exchangeable with the new one. Images of one
subject are not: a subject who is rebuilt badly is rebuilt badly everywhere, and hundreds of its images say little more than one.
Subjects are. So subjects weigh equally, whatever the number of their images (hierarchical conformal prediction, Lee, Barber &
Willett 2023). Where all images of the new subject are scored too, it becomes one more of the subjects that a score is ranked
among, and few calibration subjects no longer make every p large.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from normscape.errors import DataError
from normscape.scoring.conditions import Array
from normscape.scoring.expected import Levels


@dataclass(frozen=True)
class Conformal:
    """Calibration scores s_ki, i = 1..n_k, of K healthy subjects.

    The p-value of a score s is

        p(s) = (1 + sum_k (1 / n_k) #{i: s_ki >= s}) / (K + 1).

    For an image drawn at random from a new healthy subject, P(p <= a) <= a for every a, over calibration subjects and the new one
    together, if those K + 1 are exchangeable; nothing is supposed of the scores' distribution. So the share of healthy images
    with p <= a is at most a on average over subjects; it may be more for one subject. No p is below 1 / (K + 1), unless the new
    subject's other images are known, too (`pooled_p_value`).

    Scores may first be brought to one level: (s - m(c)) / b(c) with median and spread expected under the conditions c, fitted to
    *other* subjects (locally weighted conformal prediction, Lei et al. 2018). The promise then holds as before, however bad that
    fit, and the better it is the more it also holds at each age and place. Bins of age and place (Mondrian conformal prediction)
    would promise it within each bin, but divide the few subjects that there are among themselves.

    Attributes:
        scores: levelled scores of all calibration images, ascending, (N,).
        weights: 1 / n_k of each of them, (N,); they sum to K.
        subjects: K.
        levels: of the score, one value; None where scores are compared as they are.
    """

    scores: Array
    weights: Array
    subjects: int
    levels: Levels | None = None

    @classmethod
    def fit(cls, scores: Array, subject: NDArray[Any], *, conditions: Array | None = None, levels: Levels | None = None) -> Self:
        """Keep the scores of healthy images of subjects that neither networks nor detectors have seen.

        Args:
            scores: (N,), higher is more abnormal.
            subject: whose image each is, (N,).
            conditions: (N, D), needed with `levels`.
            levels: fitted to scores of other subjects.

        Raises:
            ValueError: there is no score, or one is not finite.
        """
        if not len(scores) or not np.isfinite(scores).all():
            raise ValueError(f"calibration needs finite scores, found {len(scores)} of which {np.isfinite(scores).sum()} are")
        _, owner, counts = np.unique(subject, return_inverse=True, return_counts=True)
        levelled = _levelled(scores, conditions, levels)
        order = np.argsort(levelled, kind="stable")
        return cls(levelled[order], (1.0 / counts[owner])[order], len(counts), levels)

    @property
    def smallest(self) -> float:
        """No p-value is below this: 1 / (K + 1)."""
        return 1.0 / (self.subjects + 1)

    def p_value(self, scores: Array, conditions: Array | None = None) -> Array:
        """p of scores (N,) under conditions (N, D): (N,), in [1 / (K + 1), 1]."""
        found: Array = (1.0 + self._at_least(scores, conditions)) / (self.subjects + 1.0)
        return np.minimum(found, 1.0)

    def pooled_p_value(self, scores: Array, subject: NDArray[Any], conditions: Array | None = None) -> Array:
        """p of scores (N,) that are *all* the images looked at of their subjects (N,) under conditions (N, D): (N,).

        `p_value` must suppose that all of a new subject's images score as high as the one in question, which is where its
        1 / (K + 1) comes from. Where a subject's images are all scored, as the patches of a scan are, their share s' >= s is
        known and takes the place of the 1:

            p(s) = ((1 / n) #{i: s'_i >= s} + sum_k (1 / n_k) #{i: s_ki >= s}) / (K + 1).

        This is the rank of s among the images of K + 1 subjects who weigh equally. If these are exchangeable, an image drawn at
        random from the new one is an image drawn at random from one of them, so that P(p <= a) <= a as before, and P(p <= a) > a
        less the weight of a single image: the promise is kept nearly exactly and not emptily, however few subjects there are.
        The smallest p is 1 / (n (K + 1)). An anomaly in many of a subject's images raises p, by at most their share of
        1 / (K + 1).
        """
        levelled = _levelled(scores, conditions, self.levels)
        own = np.empty(len(levelled))
        for rows in _rows_of_each(subject):
            ascending = np.sort(levelled[rows])
            own[rows] = 1.0 - np.searchsorted(ascending, levelled[rows], side="left") / len(rows)
        found: Array = (own + self._at_least_levelled(levelled)) / (self.subjects + 1.0)
        return np.minimum(found, 1.0)

    def share(self, scores: Array, conditions: Array | None = None) -> Array:
        """Share of the calibration images, subjects weighing equally, that score at least as high: (N,), from 0 to 1.

        An estimate without a promise, a little too small on average: what is left of p where there are too few subjects for the
        promise to mean anything (pooled distribution functions, Dunn, Wasserman & Ramdas 2022).
        """
        found: Array = self._at_least(scores, conditions) / self.subjects
        return np.minimum(found, 1.0)

    def _at_least(self, scores: Array, conditions: Array | None) -> Array:
        """sum_k (1 / n_k) #{i: s_ki >= s}, (N,), from 0 to K."""
        return self._at_least_levelled(_levelled(scores, conditions, self.levels))

    def _at_least_levelled(self, levelled: Array) -> Array:
        upward = np.append(np.cumsum(self.weights[::-1])[::-1], 0.0)
        found: Array = upward[np.searchsorted(self.scores, levelled, side="left")]
        return found


def _rows_of_each(subject: NDArray[Any]) -> list[NDArray[np.intp]]:
    """Rows of each subject, in no particular order of subjects."""
    _, owner, counts = np.unique(subject, return_inverse=True, return_counts=True)
    return np.split(np.argsort(owner, kind="stable"), np.cumsum(counts)[:-1])


def _levelled(scores: Array, conditions: Array | None, levels: Levels | None) -> Array:
    if levels is None:
        return np.asarray(scores, np.float64)
    if conditions is None:
        raise ValueError("scores are levelled by their conditions: give those, too")
    return levels.z(np.asarray(scores, np.float64)[:, None], conditions)[:, 0]


@dataclass(frozen=True)
class Calibration:
    """What one file holds: several scores' calibrations, and what has to be the same where they are used.

    Attributes:
        scores: name of a score to its calibration.
        settings: JSON values; their meaning is the writer's.
    """

    scores: Mapping[str, Conformal]
    settings: Mapping[str, Any]

    def save(self, stem: Path) -> None:
        """Write `<stem>.safetensors`, the numbers, and `<stem>.json`: settings and, for each score, what p can be."""
        arrays: dict[str, Array] = {}
        for name, one in self.scores.items():
            arrays |= {f"{name}/scores": one.scores, f"{name}/weights": one.weights}
            arrays |= {} if one.levels is None else one.levels.to_arrays(f"{name}/levels")
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, stem.with_suffix(".safetensors"))
        described = {
            name: {
                "subjects": one.subjects,
                "images": len(one.scores),
                "smallest_p": one.smallest,
                "levelled": one.levels is not None,
            }
            for name, one in self.scores.items()
        }
        text = json.dumps({"settings": dict(self.settings), "scores": described}, indent=2, allow_nan=False)
        stem.with_suffix(".json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, stem: Path) -> Self | None:
        """Read what `save` wrote; None where neither file is there.

        Raises:
            DataError: a file is missing or damaged.
        """
        paths = stem.with_suffix(".safetensors"), stem.with_suffix(".json")
        if not any(path.exists() for path in paths):
            return None
        try:
            arrays, described = load_file(paths[0]), json.loads(paths[1].read_text(encoding="utf-8"))
            scores = {}
            for name, entry in described["scores"].items():
                levels = Levels.from_arrays(arrays, f"{name}/levels") if entry["levelled"] else None
                scores[name] = Conformal(
                    arrays[f"{name}/scores"], arrays[f"{name}/weights"], int(entry["subjects"]), levels
                )  # fmt: skip
            settings = dict(described["settings"])
        except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
            both = " and ".join(str(path) for path in paths)
            raise DataError(f"{both}: expected scores of healthy subjects, found something else ({error})") from error
        return cls(scores, settings)


def limit_of(subjects: int) -> str:
    """How small a p-value can get, in words."""
    people = "subject" if subjects == 1 else "subjects"
    return f"with {subjects} {people} p cannot be below 1/{subjects + 1} = {1 / (subjects + 1):.3g}"
