"""Cases: the same images for everybody, normal ones and others of the same subjects with an anomaly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from normscape.baselines.anomalies import Donors, TrainingAnomalies
from normscape.evaluation import cases as module
from normscape.evaluation.cases import NORMAL, Memory, choose_rows
from normscape.evaluation.splits import HEALTHY, SYNTHETIC
from tests.evaluation.toys import family

if TYPE_CHECKING:
    import pytest

    from tests.evaluation.conftest import Prepared


def test_rows_are_distinct_and_even_over_subjects() -> None:
    subject = np.repeat(["a", "b", "c"], [40, 10, 4])
    normal, other = choose_rows(subject, 12, 0, "test", halves=True)
    assert len(normal) == len(other) == 12
    assert len(set(normal.tolist()) | set(other.tolist())) == 24
    for rows in (normal, other):
        assert sorted(np.unique(subject[rows.numpy()], return_counts=True)[1].tolist()) == [2, 5, 5]  # `c` has four images in all
    again = choose_rows(subject, 12, 0, "test", halves=True)
    assert all(torch.equal(a, b) for a, b in zip((normal, other), again, strict=True))
    assert not torch.equal(normal, choose_rows(subject, 12, 1, "test", halves=True)[0])
    assert not torch.equal(normal, choose_rows(subject, 12, 0, "healthy", halves=True)[0])


def test_the_only_image_of_a_subject_is_tested_twice() -> None:
    """As it is and with anomalies, as whole scans are; whoever has more images has different ones."""
    normal, other = choose_rows(np.array(["a", "b", "c", "d", "d"]), 9, 0, "test", halves=True)
    assert set(normal.tolist()) & set(other.tolist()) == {0, 1, 2}
    assert set(normal.tolist()) | set(other.tolist()) == {0, 1, 2, 3, 4}
    assert len(normal) == len(other) == 4
    normal, other = choose_rows(np.array(["a", "b"]), 9, 0, "test", halves=False)
    assert (len(normal), len(other)) == (2, 0)


def test_more_images_begin_with_the_same_ones() -> None:
    """A larger test contains the smaller one."""
    subject = np.repeat(["a", "b", "c"], 30)
    few, many = (choose_rows(subject, count, 3, "test", halves=True) for count in (6, 20))
    for a, b in zip(few, many, strict=True):
        assert torch.equal(a, b[:6])


def test_a_role_without_anomalies_is_all_normal(chairs: Prepared) -> None:
    found = chairs.bench.validation(HEALTHY)
    assert (len(found.normal), len(found.other), len(found)) == (16, 0, 16)


def test_every_family_has_the_same_rows_and_its_own_images(chairs: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn one at a time or together, kept in memory or not: the same pixels."""
    found = chairs.bench.validation(SYNTHETIC)
    dark, grey = found.drawn("dark"), found.drawn("grey")
    assert torch.equal(dark.rows, grey.rows)
    assert not torch.equal(dark.images, grey.images)
    assert set(dark.rows.tolist()).isdisjoint(found.drawn(NORMAL).rows.tolist())
    assert set(found.images.subject[dark.rows.numpy()]) <= set(chairs.bench.roles.synthetic)
    plain = found.images.batch(dark.rows).images
    changed = (dark.images != plain).flatten(1).any(1)
    assert changed.all()
    monkeypatch.setattr(module, "DRAWN_AT_ONCE", 1)
    again = chairs.bench.validation(SYNTHETIC)
    again.memory = Memory(limit=0)
    assert torch.equal(again.drawn("dark").images, dark.images)
    assert again.memory.held == {}
    assert found.drawn("dark") is dark  # held in memory
    batches = list(found.batches(dark, 5))
    assert torch.equal(torch.cat([batch.images for batch in batches]), dark.images)
    assert torch.equal(
        torch.cat([batch.conditions["angle"] for batch in batches]), found.images.batch(dark.rows).conditions["angle"]
    )


def test_images_without_a_place_are_left_out_and_counted(chairs: Prepared) -> None:
    found = chairs.evaluating(families=[family("rare", empty_every=2)], training_families=[]).bench.validation(SYNTHETIC)
    rare, ids = found.drawn("rare"), found.images.samples.sample_id
    assert rare.left_out == int((ids[found.other] % 2 == 0).sum()) > 0
    assert (ids[rare.rows] % 2 == 1).all()
    assert len(rare.images) == len(rare.size) == len(rare.contrast) == len(found.other) - rare.left_out


def test_donors_are_others_near_in_what_is_known(chairs: Prepared) -> None:
    """With four views a chair, a donor shows another chair at the same angle; the same whatever the batch."""
    images = chairs.bench.healthy_training()
    donors = Donors(images, seed=0)
    rows = torch.arange(len(images))
    batch, found = images.batch(rows), donors(rows)
    assert torch.equal(found.conditions["angle"], batch.conditions["angle"])
    assert (found.images != batch.images).flatten(1).any(1).float().mean() > 0.9
    assert torch.equal(donors(torch.tensor([7])).images, found.images[7:8])
    assert torch.equal(donors(torch.tensor([7 + len(images)])).images, found.images[7:8])
    assert not torch.equal(Donors(images, seed=1)(rows).images, found.images)


def test_a_single_subject_has_no_donor(chairs: Prepared) -> None:
    images = chairs.bench.healthy_training()
    alone = type(images)(images.samples.select(torch.arange(4)), chairs.config.value_attributes)
    assert Donors(alone, 0)(torch.tensor([0])) is None


def test_training_anomalies_are_of_families_that_may_be_seen(chairs: Prepared) -> None:
    """In turn over the rows, a pure function of the row, other than those that are tested on."""
    bench = chairs.bench
    images = bench.healthy_training()
    rows = torch.arange(12)
    batch = images.batch(rows)
    drawn = TrainingAnomalies(chairs.config, bench.training_families, images, seed=0)(batch, rows)
    assert (drawn.images.amin(dim=(1, 2, 3)) == -1.0).all()  # family dark alone
    both = TrainingAnomalies(chairs.config, bench.families, images, seed=0)
    found = both(batch, rows)
    hidden = [found.images[i][found.masks[i].expand(3, -1, -1) > 0].mean().item() for i in range(12)]
    np.testing.assert_allclose(hidden, [-1.0, 0.1] * 6, atol=1e-6)
    backwards = both(batch.rows(rows.flip(0)), rows.flip(0))
    assert torch.equal(backwards.images.flip(0), found.images)
    assert torch.equal(backwards.size.flip(0), found.size)
    other = TrainingAnomalies(chairs.config, bench.families, images, seed=1)(batch, rows)
    assert not torch.equal(other.images, found.images)
    later = both(batch, rows + len(images))  # another cycle, other anomalies
    assert not torch.equal(later.masks, found.masks)
