"""Contributions add up to the score, follow the paths that an image takes, and name the feature that matters."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from normscape.scoring.attribution import Attribution, forest_attribution


def data(rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Five columns, of which the third tells the label, up to some noise."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(rows, 5))
    return features, (features[:, 2] + 0.3 * generator.normal(size=rows) > 0.5).astype(int)


@pytest.fixture(scope="module")
def forest() -> RandomForestClassifier:
    return RandomForestClassifier(n_estimators=25, max_depth=5, random_state=0).fit(*data())


def test_contributions_sum_to_the_score_minus_the_bias(forest: RandomForestClassifier) -> None:
    """For rows that the forest saw and others, to the rounding of sums."""
    features = np.concatenate([data()[0], np.random.default_rng(1).normal(size=(50, 5)) * 3])
    found = forest_attribution(forest, features)
    assert found.contributions.shape == features.shape
    assert np.allclose(found.bias + found.contributions.sum(axis=1), forest.predict_proba(features)[:, 1], atol=1e-12)
    assert abs(found.bias - data()[1].mean()) < 0.05


def test_the_paths_are_those_of_each_tree_step_by_step(forest: RandomForestClassifier) -> None:
    """The same numbers as walking down every tree by hand."""
    features = data()[0][:8]
    found = forest_attribution(forest, features).contributions
    expected = np.zeros_like(found)
    for estimator in forest.estimators_:
        tree = estimator.tree_
        for i, row in enumerate(features.astype(np.float32)):
            node = 0
            while tree.children_left[node] >= 0:
                feature = tree.feature[node]
                side = tree.children_left if row[feature] <= tree.threshold[node] else tree.children_right
                before, after = (tree.value[n, 0, 1] / tree.value[n, 0].sum() for n in (node, side[node]))
                expected[i, feature] += (after - before) / len(forest.estimators_)
                node = side[node]
    assert np.allclose(found, expected, atol=1e-12)


def test_the_telling_feature_gets_the_credit_with_its_sign(forest: RandomForestClassifier) -> None:
    """A high value of the third column raises the score, a low one lowers it, and it comes first."""
    features = np.zeros((2, 5))
    features[:, 2] = (2.0, -2.0)
    found = forest_attribution(forest, features)
    assert found.strongest(0, 3)[0] == found.strongest(1, 3)[0] == 2
    assert found.contributions[0, 2] > 0.3
    assert found.contributions[1, 2] < -0.1


def test_features_that_did_nothing_are_not_named() -> None:
    """Fewer are named than asked for; ties keep the order of the columns."""
    found = Attribution(0.5, np.array([[0.0, -0.2, 0.1, 0.2]]))
    assert found.strongest(0, 2).tolist() == [1, 3]
    assert found.strongest(0, 9).tolist() == [1, 3, 2]


def test_a_tree_without_a_split_and_wrong_features(forest: RandomForestClassifier) -> None:
    """A stump gives its share to everybody; another number of columns, or other classes, are refused."""
    features, label = data(40)
    lone = RandomForestClassifier(n_estimators=3, min_samples_leaf=40, bootstrap=False, random_state=0).fit(features, label)
    found = forest_attribution(lone, features)
    assert not found.contributions.any()
    assert found.bias == pytest.approx(label.mean())
    with pytest.raises(ValueError, match=r"expected features \(N, 5\), found \(2, 4\)"):
        forest_attribution(forest, features[:2, :4])
    other = RandomForestClassifier(n_estimators=2, random_state=0).fit(features, label + 1)
    with pytest.raises(ValueError, match="classes 0 and 1"):
        forest_attribution(other, features)
