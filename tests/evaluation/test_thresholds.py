"""Thresholds keep their promise on the images they were chosen on, and on average on new ones."""

from __future__ import annotations

import numpy as np
import pytest

from normscape.evaluation.thresholds import enough, promised_threshold, promised_thresholds


@pytest.mark.parametrize("count", [3, 10, 19, 20, 99, 100, 500])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.3])
def test_the_promise_is_kept_where_it_was_made(count: int, rate: float) -> None:
    score = np.random.default_rng(count).normal(size=count)
    assert (score > promised_threshold(score, rate)).mean() <= rate


def test_it_is_no_stricter_than_it_must_be() -> None:
    """Of 99 images and 5 %, rank ceil(100 * 0.95) = 95: four exceed it."""
    assert promised_threshold(np.arange(1.0, 100.0), 0.05) == 95.0
    assert promised_threshold(np.arange(1.0, 20.0), 0.05) == 19.0
    assert promised_thresholds(np.arange(1.0, 100.0), [0.05, 0.1]) == {0.05: 95.0, 0.1: 90.0}


def test_new_images_exceed_it_as_rarely_as_promised() -> None:
    """Over many draws of 49 images the mean rate is floor((n + 1) rate) / (n + 1) = 0.04 for continuous scores."""
    random = np.random.default_rng(0)
    rates = [1 - promised_threshold(random.uniform(size=49), 0.05) for _ in range(4000)]  # of uniform scores
    assert np.mean(rates) == pytest.approx(0.04, abs=0.002)


def test_equal_scores_are_not_called() -> None:
    assert (np.ones(10) > promised_threshold(np.ones(10), 0.1)).sum() == 0


def test_too_few_images_say_so() -> None:
    assert [enough(count, 0.05) for count in (18, 19, 20)] == [False, True, True]
    assert promised_threshold([1.0, 2.0, 3.0], 0.05) == 3.0
    with pytest.raises(ValueError, match="at least one"):
        promised_threshold([], 0.05)
