"""Contrast augmentation: mixtures, shifts and the map of the intensities."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from normscape.datasets.contrast import SCHEMA, ContrastShifts, ContrastTable, measure_contrast, shift_contrast
from normscape.errors import DataError


def brain(seed: int = 0, means: tuple[float, ...] = (300.0, 700.0, 1000.0), spread: float = 40.0) -> NDArray[np.float64]:
    """Intensities of a scan: 15 % dark, 45 % grey, 40 % white."""
    random = np.random.default_rng(seed)
    parts = zip(means, (1.5, 1.0, 0.8), (3000, 9000, 8000), strict=True)
    return np.concatenate([random.normal(m, spread * s, n) for m, s, n in parts])


@pytest.fixture(scope="module")
def table() -> ContrastTable:
    """Eight scans whose contrast varies."""
    random = np.random.default_rng(1)
    scans = [brain(i, tuple(np.array([300.0, 700.0, 1000.0]) + random.normal(0, 40, 3)), 35 + 3 * i) for i in range(8)]
    rows = [{"subject": f"s-{i}", "session": ""} | measure_contrast(scan) for i, scan in enumerate(scans)]
    return ContrastTable.from_table(pa.Table.from_pylist(rows, schema=SCHEMA))


def known(table: ContrastTable, scan: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return table.parameters[scan], table.weights[scan], table.quantiles[scan]


def test_the_mixture_is_found_again() -> None:
    """Means, variances and shares of three tissues, of z-scores, from dark to bright; whatever the unit of the intensities."""
    values = brain()
    found = measure_contrast(values)
    z = (np.array([300, 700, 1000]) - values.mean()) / values.std()
    assert found["means"] == pytest.approx(z, abs=0.02)
    assert np.sqrt(found["variances"]) == pytest.approx(np.array([60, 40, 32]) / values.std(), rel=0.06)
    assert found["weights"] == pytest.approx([0.15, 0.45, 0.4], abs=0.01)
    other = measure_contrast(values * 0.01 + 5)
    assert other["means"] == pytest.approx(found["means"], abs=1e-6)
    assert other["mean"] == pytest.approx(0.01 * found["mean"] + 5)


@pytest.mark.parametrize("values", [np.full(100, 3.0), np.array([1.0, 2.0]), np.array([1.0] * 50 + [np.nan] * 50)])
def test_no_brain_is_refused(values: NDArray[np.float64]) -> None:
    with pytest.raises(DataError, match="finite intensities that differ"):
        measure_contrast(values)


def test_no_shift_changes_nothing(table: ContrastTable) -> None:
    """Also far from every tissue."""
    images = torch.linspace(-4, 4, 4096).view(1, 1, 16, 16, 16).repeat(8, 1, 1, 1, 1)
    shifted = shift_contrast(images, *known(table, torch.arange(8)), torch.zeros(8, 6))
    torch.testing.assert_close(shifted, images, atol=1e-5, rtol=1e-5)


def test_tissues_move_as_the_formula_says(table: ContrastTable) -> None:
    """Where one tissue alone can be meant: x' is its line, up to the standardisation of the whole, which keeps proportions."""
    parameters, weights, quantiles = known(table, torch.tensor([0]))
    shift = torch.tensor([[0.2, -0.15, 0.1, 0.02, -0.01, 0.005]])
    points = torch.cat([parameters[:, :3], parameters[:, 1:2] + parameters[:, 4:5].sqrt() / 4], dim=1)
    moved = shift_contrast(points[:, None], parameters, weights, quantiles, shift)[0, 0]
    new = (parameters + shift)[0]
    expected = torch.cat([new[:3], new[1:2] + new[4:5].sqrt() / 4])
    ratios = [((x[1] - x[0]) / (x[2] - x[0])).item() for x in (moved, expected)]
    assert ratios[0] == pytest.approx(ratios[1], abs=0.02)
    narrow = [((x[3] - x[1]) / (x[2] - x[0])).item() for x in (moved, expected)]
    assert narrow[0] == pytest.approx(narrow[1], rel=0.1)


def test_whole_scans_stay_standardised(table: ContrastTable) -> None:
    """Statistics from the quantiles are those of all voxels of the shifted scan."""
    shifts = ContrastShifts.fit(table.parameters, "pca")
    for seed in range(4):
        values = brain(0)
        found = ContrastTable.from_table(
            pa.Table.from_pylist([{"subject": "", "session": ""} | measure_contrast(values)], schema=SCHEMA)
        )
        z = torch.from_numpy((values - values.mean()) / values.std()).float()[None, None]
        shift = 3 * shifts.to_parameters(shifts.sample(1, torch.Generator().manual_seed(seed)))
        moved = shift_contrast(z, *known(found, torch.tensor([0])), shift)
        assert (moved - z).abs().max() > 0.05
        assert moved.mean().item() == pytest.approx(0, abs=0.01)
        assert moved.std().item() == pytest.approx(1, abs=0.01)


def test_a_batch_is_its_images(table: ContrastTable) -> None:
    """Alone and among 63 others an image is mapped alike."""
    random = torch.Generator().manual_seed(0)
    images, scan = torch.randn(64, 1, 8, 8, 8, generator=random), torch.randint(8, (64,), generator=random)
    shifts = ContrastShifts.fit(table.parameters, "pca")
    shift = shifts.to_parameters(shifts.sample(64, random))
    together = shift_contrast(images, *known(table, scan), shift)
    for i in (0, 31, 63):
        alone = shift_contrast(images[i : i + 1], *known(table, scan[i : i + 1]), shift[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], atol=1e-6, rtol=1e-6)


def test_shifts_stay_within_one_standard_deviation(table: ContrastTable) -> None:
    """Along principal components, which are those of the scans; or of each parameter."""
    theta = table.parameters.double()
    principal = ContrastShifts.fit(table.parameters, "pca")
    assert principal.directions @ principal.directions.T == pytest.approx(torch.eye(6), abs=1e-5)
    assert (principal.std.diff() <= 0).all()
    spread = torch.linalg.svdvals(theta - theta.mean(0)) / 7**0.5
    assert principal.std == pytest.approx(spread.float(), abs=1e-4)
    sample = principal.sample(4000, torch.Generator().manual_seed(0))
    assert sample.abs().max() <= 1
    assert sample.std(0) == pytest.approx(torch.full((6,), 3**-0.5), abs=0.02)
    along = principal.to_parameters(sample) @ principal.directions.T
    assert (along.abs() <= principal.std + 1e-6).all()
    assert (along.abs().amax(0) >= 0.99 * principal.std).all()
    single = ContrastShifts.fit(table.parameters, "independent")
    assert single.to_parameters(torch.ones(1, 6))[0] == pytest.approx(theta.std(0).float(), abs=1e-6)


def test_principal_shifts_keep_what_scans_have_in_common() -> None:
    """Parameters that vary together shift together; on their own they leave what scans do."""
    amount = torch.randn(20, 1, generator=torch.Generator().manual_seed(0))
    parameters = torch.tensor([[-1.5, 0.0, 1.0, 0.3, 0.2, 0.2]]) + amount * torch.tensor([[0.1, -0.1, 0.0, 0.0, 0.0, 0.0]])
    for mode, together in (("pca", True), ("independent", False)):
        shifts = ContrastShifts.fit(parameters, mode)
        shift = shifts.to_parameters(shifts.sample(100, torch.Generator().manual_seed(1)))
        assert torch.allclose(shift[:, 0], -shift[:, 1], atol=1e-5) == together


def test_variances_stay_positive(table: ContrastTable) -> None:
    """However large the shift."""
    images = torch.linspace(-4, 4, 64).view(1, 1, 64)
    shift = torch.tensor([[0.0, 0.0, 0.0, -9.0, -9.0, -9.0]])
    assert shift_contrast(images, *known(table, torch.tensor([3])), shift).isfinite().all()


def test_one_scan_cannot_tell_how_contrast_varies(table: ContrastTable) -> None:
    with pytest.raises(DataError, match="two scans or more to learn from, found 1"):
        ContrastShifts.fit(table.parameters[:1], "pca")
