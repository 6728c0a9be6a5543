"""Random forest on the features of a projection (thesis II.B.2, IV.A.3)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import joblib
import numpy as np
import skops.io
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV

from normscape.errors import DataError
from normscape.scoring.detectors import Array, Groups, Labels, grouped_folds
from normscape.scoring.thresholds import best_accuracy_threshold

TRUSTED_TYPES = ["sklearn.tree._tree.Tree"]
"""Types in a forest's file that skops does not trust by itself; a file with any other is refused."""


class ForestDetector:
    """A random forest whose settings are found by grid search with cross-validation grouped by subject.

    The search maximises the mean AUROC of the held-out folds; the first of equally good settings wins, so list cheap ones
    first. The score is the forest's probability of anomalous, in [0, 1]; above one half, or above the threshold that `calibrate`
    finds, a row is called anomalous. The result does not depend on `jobs`: grid points are fitted in parallel, but one thread
    adds up the trees of one forest, in order.

    Args:
        max_depth: grid of maximum depths.
        n_estimators: grid of numbers of trees.
        min_samples_leaf: grid of smallest leaves.
        max_features: share of the features, in (0, 1], that a tree tries at each split; as many as the square root of their
            number when None.
        folds: of the cross-validation.
        seed: of the trees and the folds.
        jobs: threads.
    """

    threshold_: float
    forest_: RandomForestClassifier
    best_params_: dict[str, int]
    grid_: list[dict[str, float | None]]  # the settings with mean and deviation of the folds' AUROC
    feature_importances_: Array  # (F,), mean decrease of impurity on the training rows, sums to 1

    def __init__(
        self,
        *,
        max_depth: Sequence[int] = (3, 5, 7, 9, 11, 13),
        n_estimators: Sequence[int] = (100, 300),
        min_samples_leaf: Sequence[int] = (1,),
        max_features: float | None = None,
        folds: int = 5,
        seed: int = 0,
        jobs: int = 1,
    ) -> None:
        self.max_depth = tuple(max_depth)
        self.n_estimators = tuple(n_estimators)
        self.min_samples_leaf = tuple(min_samples_leaf)
        self.max_features = max_features
        self.folds = folds
        self.seed = seed
        self.jobs = jobs

    def fit(self, features: Array, label: Labels, groups: Groups) -> Self:
        """Search the grid, then fit the best settings to all rows; a grid of one setting is fitted without a search.

        Args:
            features: `(N, F)`.
            label: 0 or 1, `(N,)`.
            groups: subject of every row, `(N,)`.

        Raises:
            DataError: too few subjects for the folds, or a fold with one class only.
        """
        grid = [
            {"max_depth": depth, "n_estimators": trees, "min_samples_leaf": leaf}
            for depth, leaf, trees in itertools.product(self.max_depth, self.min_samples_leaf, self.n_estimators)
        ]
        forest = RandomForestClassifier(max_features=self.max_features or "sqrt", random_state=self.seed, n_jobs=1)
        if len(grid) == 1:
            self.grid_ = [{**grid[0], "mean_auroc": None, "std_auroc": None}]
            self.best_params_ = grid[0]
            self._take(forest.set_params(**grid[0]).fit(features, label))
            return self
        search = GridSearchCV(
            forest,
            [{name: [value] for name, value in point.items()} for point in grid],
            scoring="roc_auc",
            cv=grouped_folds(label, groups, folds=self.folds, seed=self.seed),
            n_jobs=self.jobs,
            error_score="raise",
        )
        with joblib.parallel_config(backend="threading"):  # growing trees releases the interpreter lock
            search.fit(features, label)
        means, deviations = search.cv_results_["mean_test_score"], search.cv_results_["std_test_score"]
        self.grid_ = [
            {**point, "mean_auroc": float(mean), "std_auroc": float(deviation)}
            for point, mean, deviation in zip(grid, means, deviations, strict=True)
        ]
        self.best_params_ = grid[int(search.best_index_)]
        self._take(search.best_estimator_)
        return self

    def with_best_settings(self) -> ForestDetector:
        """An unfitted detector whose grid is the one setting that was found; for out-of-fold scores."""
        best = {name: (value,) for name, value in self.best_params_.items()}
        return ForestDetector(**best, max_features=self.max_features, folds=self.folds, seed=self.seed, jobs=self.jobs)

    def calibrate(self, features: Array, label: Labels) -> Self:
        """The threshold of the best accuracy on these rows."""
        self.threshold_ = best_accuracy_threshold(label, self.decision_function(features))
        return self

    def decision_function(self, features: Array) -> Array:
        """Probability of anomalous, averaged over the trees, `(N,)`, in [0, 1]."""
        return self.forest_.predict_proba(features)[:, 1]

    def predict(self, features: Array) -> Labels:
        """1 where the score exceeds the threshold."""
        return (self.decision_function(features) > self.threshold_).astype(np.int64)

    def save(self, path: Path, feature_names: Sequence[str]) -> None:
        """Write the forest as `path` (skops) and its settings as JSON beside it.

        Args:
            path: ends in `.skops`.
            feature_names: columns, in the order of the features.
        """
        skops.io.dump(self.forest_, path)
        settings: dict[str, Any] = {
            "detector": "forest",
            "features": list(feature_names),
            "threshold": self.threshold_,
            "best_params": self.best_params_,
            "max_depth": self.max_depth,
            "n_estimators": self.n_estimators,
            "min_samples_leaf": self.min_samples_leaf,
            "max_features": self.max_features,
            "folds": self.folds,
            "seed": self.seed,
            "grid": self.grid_,
        }
        path.with_suffix(".json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> tuple[Self, list[str]]:
        """Read what `save` wrote: the detector and the names of its features.

        Raises:
            DataError: a file is missing or damaged, holds types that a forest does not need, or does not match its settings.
        """
        try:
            untrusted = sorted(set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED_TYPES))
            if untrusted:
                raise DataError(f"{path}: expected a random forest, found types that are not trusted: {', '.join(untrusted)}")
            forest = skops.io.load(path, trusted=TRUSTED_TYPES)
            settings = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            grid = {name: settings[name] for name in ("max_depth", "n_estimators", "min_samples_leaf", "folds", "seed")}
            detector = cls(**grid, max_features=settings.get("max_features"))
            detector.best_params_ = settings["best_params"]
            detector.grid_ = settings["grid"]
            threshold = float(settings["threshold"])
            names = list(settings["features"])
        except DataError:
            raise
        except Exception as error:  # a damaged archive fails in many ways, all of them the file's fault
            raise DataError(f"{path}: expected a saved forest and its settings, found something else ({error})") from error
        if not isinstance(forest, RandomForestClassifier) or forest.n_features_in_ != len(names):
            raise DataError(f"{path}: the forest and the settings in {path.with_suffix('.json').name} do not belong together")
        detector._take(forest)
        detector.threshold_ = threshold
        return detector, names

    def _take(self, forest: RandomForestClassifier) -> None:
        """Make a fitted forest this detector's own."""
        self.forest_ = forest
        self.threshold_ = 0.5
        self.feature_importances_ = np.asarray(forest.feature_importances_, dtype=np.float64)
