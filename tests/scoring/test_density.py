"""The density of styles: about 1 for what is usual, larger for what is usual only under other conditions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from normscape.errors import DataError
from normscape.scoring.density import StyleDensity
from normscape.scoring.metrics import roc_curve

SIDES = (4, 8)


def _styles(conditions: np.ndarray, random: np.random.Generator, width: int = 6) -> dict[str, np.ndarray]:
    """Two sub-spaces of two resolutions; the first coordinate of `identity` follows the condition, the others are correlated."""
    mix = np.random.default_rng(9).normal(size=(width, width))
    noise = random.normal(size=(2, len(conditions), 2, width)) @ mix
    follows = np.zeros((len(conditions), 1, width))
    follows[:, 0, 0] = 8 * np.sin(conditions[:, 0] / 15)
    return {"identity": noise[0] + follows, "other": noise[1]}


def test_usual_styles_lie_at_about_one_and_those_of_other_conditions_do_not() -> None:
    """The same styles, with true and with wrong conditions: distances tell them apart, lengths cannot."""
    random = np.random.default_rng(0)
    known = random.uniform(0, 90, (1200, 1))
    density = StyleDensity.fit(_styles(known, random), known, SIDES, seed=0)
    fresh = random.uniform(0, 90, (600, 1))
    styles = _styles(fresh, random)
    right = density.columns(styles, fresh)
    wrong = density.columns(styles, (fresh + 45) % 90)
    assert list(right) == [f"density/{name}{side}" for name in ("identity", "other") for side in ("/4", "/8", "")]
    for name in ("density/identity", "density/other", "density/identity/4"):
        assert right[name].mean() == pytest.approx(0.95, abs=0.12), name  # chi of 6 dimensions: 0.96; shrinking lowers it
    label = np.repeat([0, 1], 600)
    fpr, tpr = roc_curve(label, np.concatenate([right["density/identity"], wrong["density/identity"]]))
    assert np.trapezoid(tpr, fpr) > 0.8
    np.testing.assert_allclose(wrong["density/other"].mean(), right["density/other"].mean(), atol=0.05)
    np.testing.assert_allclose(
        right["density/identity"], np.sqrt((right["density/identity/4"] ** 2 + right["density/identity/8"] ** 2) / 2)
    )


def test_without_conditions_it_is_mahalanobis_with_a_shrunk_covariance() -> None:
    random = np.random.default_rng(1)
    u = random.normal(size=(50, 1, 4)) * [1, 2, 3, 0.5] + 5
    density = StyleDensity.fit({"identity": u}, np.zeros((50, 0)), (4,), seed=0)
    shrunk = LedoitWolf().fit(u[:, 0])
    expected = [mahalanobis(x, u[:, 0].mean(0), np.linalg.inv(shrunk.covariance_)) / 2 for x in u[:, 0]]
    np.testing.assert_allclose(density.columns({"identity": u}, np.zeros((50, 0)))["density/identity/4"], expected, rtol=1e-5)


def test_fewer_images_than_coordinates_and_styles_that_never_change() -> None:
    random = np.random.default_rng(2)
    u = {"identity": random.normal(size=(12, 2, 40)), "other": np.full((12, 2, 3), 0.5)}
    density = StyleDensity.fit(u, random.normal(size=(12, 1)), SIDES, seed=0)
    found = density.columns({"identity": u["identity"], "other": u["other"] + 0.1}, np.zeros((12, 1)))
    assert all(np.isfinite(values).all() for values in found.values())
    assert (found["density/other"] > 1).all()


def test_a_row_alone_the_same_again_and_after_a_round_trip(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    known = random.uniform(0, 90, (100, 2))
    styles = _styles(known, random)
    density = StyleDensity.fit(styles, known, SIDES, seed=1)
    together = density.columns(styles, known)
    alone = density.columns({name: u[7:8] for name, u in styles.items()}, known[7:8])
    density.save(tmp_path / "density.safetensors")
    loaded = StyleDensity.load(tmp_path / "density.safetensors")
    for name, values in together.items():
        np.testing.assert_allclose(alone[name], values[7:8], rtol=1e-9)
        assert np.array_equal(loaded.columns(styles, known)[name], values)
    (tmp_path / "density.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError, match=r"density\.safetensors: expected a density of styles"):
        StyleDensity.load(tmp_path / "density.safetensors")
