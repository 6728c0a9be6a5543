"""Conformal p-values: the promised rate holds on new healthy subjects, whatever the scores, and however many images each has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from normscape.errors import DataError
from normscape.scoring.conformal import Calibration, Conformal, limit_of
from normscape.scoring.expected import Levels

RATES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.9)


def _above(rate: float, trials: int) -> float:
    """Three standard errors of a share that is `rate`."""
    return 3 * np.sqrt(rate * (1 - rate) / trials)


def test_by_hand() -> None:
    """Subject a has scores 1, 2, 3, 4, subject b has 3: of a half lie at or above 3, of b all."""
    one = Conformal.fit(np.array([1.0, 2, 3, 4, 3]), np.array(list("aaaab")))
    assert one.subjects == 2
    assert one.smallest == pytest.approx(1 / 3)
    np.testing.assert_allclose(one.p_value(np.array([3.0, 3.5, 9, -1])), [(1 + 0.5 + 1) / 3, (1 + 0.25) / 3, 1 / 3, 1])
    np.testing.assert_allclose(one.share(np.array([3.0, 3.5, 9, -1])), [0.75, 0.125, 0, 1])


def test_one_score_a_subject_promises_the_rate_exactly() -> None:
    """99 subjects: p <= 5 % for 5 % of new ones, between 3 and 7 %; super-uniform everywhere; heavy tails do not matter."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(800):
        scores = random.standard_t(2, size=104)
        one = Conformal.fit(scores[:99], np.arange(99))
        found.append(one.p_value(scores[99:]))
    p = np.concatenate(found)
    assert 0.03 < (p <= 0.05).mean() < 0.07
    for rate in RATES:
        assert (p <= rate).mean() <= rate + _above(rate, 800)
    assert (p <= 0.5).mean() == pytest.approx(0.5, abs=_above(0.5, 800))


def _subjects(count: int, random: np.random.Generator, spread: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of subjects with 1 to 60 images each, who differ more among themselves than their images do."""
    sizes = random.integers(1, 61, count)
    owner = np.repeat(np.arange(count), sizes)
    return random.normal(0, spread, count)[owner] + random.normal(size=len(owner)), owner


def test_many_images_of_a_subject_do_not_fool_it() -> None:
    """A random image of a new subject: the promise holds; counting images as if they were subjects breaks it."""
    random = np.random.default_rng(1)
    honest, naive = [], []
    for _ in range(3000):
        scores, owner = _subjects(10, random)
        new = np.array([random.normal(0, 2.0) + random.normal()])
        honest.append(Conformal.fit(scores, owner).p_value(new)[0])
        naive.append((1 + (scores >= new).sum()) / (len(scores) + 1))
    for rate in RATES:
        assert (np.array(honest) <= rate).mean() <= rate + _above(rate, 3000), rate
    assert (np.array(naive) <= 0.05).mean() > 0.05 + _above(0.05, 3000)
    assert min(honest) >= 1 / 11


def test_the_share_of_a_new_subjects_images_is_kept_on_average() -> None:
    """All images of new subjects, subjects weighing equally: promised 5 %, found 3 to 7 %; the plain share is nearer."""
    random = np.random.default_rng(2)
    rates: dict[str, list[float]] = {"p": [], "share": []}
    for _ in range(300):
        scores, owner = _subjects(120, random, spread=0.5)
        one = Conformal.fit(scores, owner)
        new, whose = _subjects(5, random, spread=0.5)
        for name, value in (("p", one.p_value(new)), ("share", one.share(new))):
            rates[name] += [float((value[whose == k] <= 0.05).mean()) for k in range(5)]
    assert 0.03 < np.mean(rates["p"]) < 0.05 + _above(0.05, 1500)
    assert 0.03 < np.mean(rates["share"]) < 0.07
    assert np.mean(rates["share"]) > np.mean(rates["p"])


def test_a_subject_whose_images_are_all_known_is_one_more_to_be_ranked_among() -> None:
    """By hand: calibration as above; of c's images 3, 3, 1, 9 three lie at or above 3, one at or above 9."""
    one = Conformal.fit(np.array([1.0, 2, 3, 4, 3]), np.array(list("aaaab")))
    new, whose = np.array([3.0, 3, 7, 1, 9]), np.array(list("ccdcc"))
    np.testing.assert_allclose(
        one.pooled_p_value(new, whose), [(0.75 + 1.5) / 3, (0.75 + 1.5) / 3, 1 / 3, 1, (0.25 + 0) / 3], atol=1e-12
    )
    order = np.array([4, 2, 0, 3, 1])
    np.testing.assert_allclose(one.pooled_p_value(new[order], whose[order]), one.pooled_p_value(new, whose)[order])
    assert (one.pooled_p_value(new, whose) <= one.p_value(new)).all()


def test_five_subjects_are_enough_to_keep_a_promise_among_all_images_of_a_new_one() -> None:
    """K = 5, subjects who differ twice as much as their images do: promised 5 %, found 3 to 5 %; `p_value` finds nothing."""
    random = np.random.default_rng(6)
    pooled, single, naive = ([], [], [])  # type: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]
    for _ in range(3000):
        scores, owner = _subjects(6, random)
        known = owner < 5
        one = Conformal.fit(scores[known], owner[known])
        pooled.append(one.pooled_p_value(scores[~known], owner[~known]))
        single.append(one.p_value(scores[~known]))
        naive.append(one.share(scores[~known]))
    for rate in RATES:
        found = np.array([(p <= rate).mean() for p in pooled])  # subjects weigh equally
        margin = 3 * found.std() / np.sqrt(len(found))
        assert rate - 1 / 30 - margin < found.mean() <= rate + margin, rate  # no image weighs more than a sixth of 1, here
    at_five = [np.mean([(p <= 0.05).mean() for p in values]) for values in (pooled, single, naive)]
    assert 0.03 < at_five[0] < 0.055
    assert at_five[1] == 0.0
    assert at_five[2] > 0.1


def test_expected_keep_the_promise_at_every_age() -> None:
    """Scores that rise with age: as they are, the old would be called ill; levelled by other subjects' scores, nobody is."""
    random = np.random.default_rng(3)

    def people(count: int) -> tuple[np.ndarray, np.ndarray]:
        age = random.uniform(20, 80, (count, 1))
        return age[:, 0] / 20 + random.normal(size=count) * (0.3 + age[:, 0] / 80), age

    scores, age = people(800)
    levels = Levels.fit(scores[:, None], age, seed=0, logarithm=False)
    plain, levelled, ages = [], [], []
    for _ in range(200):
        scores, age = people(139)
        new, new_age = people(20)
        plain.append(Conformal.fit(scores, np.arange(139)).p_value(new))
        one = Conformal.fit(scores, np.arange(139), conditions=age, levels=levels)
        levelled.append(one.p_value(new, new_age))
        ages.append(new_age[:, 0])
    old = np.concatenate(ages) > 60
    assert (np.concatenate(plain)[old] <= 0.05).mean() > 0.1
    for rows in (old, ~old, np.ones_like(old)):
        assert 0.03 < (np.concatenate(levelled)[rows] <= 0.05).mean() < 0.07


def test_bad_levels_cost_the_promise_nothing() -> None:
    """Levels that have learnt nonsense: the rate is still kept, because they know neither calibration nor new subjects."""
    random = np.random.default_rng(4)
    levels = Levels.fit(random.normal(size=(100, 1)), random.uniform(0, 1, (100, 1)), seed=0, logarithm=False)
    found = []
    for _ in range(1500):
        scores, known = random.gamma(1, size=40), random.uniform(0, 1, (40, 1))
        one = Conformal.fit(scores[:39], np.arange(39), conditions=known[:39], levels=levels)
        found.append(one.p_value(scores[39:], known[39:])[0])
    for rate in RATES:
        assert (np.array(found) <= rate).mean() <= rate + _above(rate, 1500)
    with pytest.raises(ValueError, match="give those, too"):
        one.p_value(np.zeros(1))


def test_equal_scores_count_as_at_least_as_high() -> None:
    """A forest gives the same probability to many: ties make p larger, never smaller."""
    one = Conformal.fit(np.zeros(50), np.arange(50))
    assert one.p_value(np.array([0.0]))[0] == 1.0
    assert one.p_value(np.array([1e-9]))[0] == pytest.approx(1 / 51)


def test_what_cannot_calibrate_is_refused() -> None:
    for scores in (np.array([]), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="finite scores"):
            Conformal.fit(scores, np.arange(len(scores)))


def test_files(tmp_path: Path) -> None:
    """A round trip gives the same p; the JSON says how small p can be; nothing there is None; damage is named."""
    random = np.random.default_rng(5)
    known = random.uniform(20, 80, (60, 1))
    scores = random.normal(size=60)
    levels = Levels.fit(random.normal(size=(100, 1)), random.uniform(20, 80, (100, 1)), seed=0, logarithm=False)
    owner = np.repeat(np.arange(6), 10)
    made = {"forest": Conformal.fit(scores, owner, conditions=known, levels=levels), "l1": Conformal.fit(scores, owner)}
    stem = tmp_path / "conformal"
    assert Calibration.load(stem) is None
    Calibration(made, {"steps": 5}).save(stem)
    loaded = Calibration.load(stem)
    assert loaded is not None
    assert loaded.settings == {"steps": 5}
    new = random.normal(size=20)
    for name, one in made.items():
        assert np.array_equal(loaded.scores[name].p_value(new, known[:20]), one.p_value(new, known[:20]))
    described = json.loads((tmp_path / "conformal.json").read_text())["scores"]["forest"]
    assert described == {"subjects": 6, "images": 60, "smallest_p": pytest.approx(1 / 7), "levelled": True}
    (tmp_path / "conformal.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"conformal\.safetensors and .*conformal\.json: expected scores of healthy subjects"):
        Calibration.load(stem)
    (tmp_path / "conformal.safetensors").unlink()
    with pytest.raises(DataError, match=r"conformal\.json"):
        Calibration.load(stem)


def test_how_small_p_can_get_in_words() -> None:
    assert limit_of(19) == "with 19 subjects p cannot be below 1/20 = 0.05"
    assert limit_of(1) == "with 1 subject p cannot be below 1/2 = 0.5"
