"""Sample sets, intensity ranges and the split by subject."""

from __future__ import annotations

import pytest
import torch

from normscape.datasets.samples import SampleSet, StoredImages, split_subjects, to_uint8, to_unit_range
from normscape.errors import DataError


def stored_images() -> torch.Tensor:
    return torch.arange(6 * 3 * 4 * 4, dtype=torch.int64).remainder(256).to(torch.uint8).view(6, 3, 4, 4)


def small_set() -> SampleSet:
    return SampleSet(
        images=StoredImages(stored_images()),
        subject=torch.tensor([0, 0, 1, 1, 2, 2]),
        subjects=("a", "b", "c"),
        values={"angle_degrees": torch.arange(6.0).unsqueeze(1)},
        sample_id=torch.arange(6),
    )


def test_uint8_and_unit_range_are_inverse() -> None:
    """Every intensity survives the way to [-1, 1] and back, and the ends are -1 and 1."""
    levels = torch.arange(256).to(torch.uint8)
    unit = to_unit_range(levels)
    assert unit.dtype == torch.float32
    assert unit.min() == -1
    assert unit.max() == 1
    assert torch.equal(to_uint8(unit), levels)


def test_to_uint8_clamps() -> None:
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_batch_is_in_unit_range() -> None:
    samples = small_set()
    batch = samples.batch(torch.tensor([4, 0]))
    assert batch.shape == (2, 3, 4, 4)
    assert torch.equal(to_uint8(batch), stored_images()[[4, 0]])


def test_select_keeps_sample_ids_of_the_full_set() -> None:
    """A subset of a subset still knows the rows of the full set."""
    chosen = small_set().select(torch.tensor([1, 3, 5])).select(torch.tensor([2, 0]))
    assert chosen.sample_id.tolist() == [5, 1]
    assert chosen.subject.tolist() == [2, 0]
    assert chosen.values["angle_degrees"].flatten().tolist() == [5.0, 1.0]
    assert len(chosen) == 2


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="sample_id"):
        SampleSet(StoredImages(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)), torch.zeros(2).long(), ("a",), {}, torch.arange(3))


def test_split_is_disjoint_seeded_and_of_the_asked_size() -> None:
    names = [f"chair-{i}" for i in range(54)]
    split = split_subjects(names, 40, 9, seed=1)
    assert (len(split.train), len(split.test)) == (40, 9)
    assert not set(split.train) & set(split.test)
    assert split == split_subjects(names, 40, 9, seed=1)
    assert split != split_subjects(names, 40, 9, seed=2)


def test_split_of_too_few_subjects_says_so() -> None:
    with pytest.raises(DataError, match=r"40 training \+ 9 test subjects, the data has 48"):
        split_subjects([str(i) for i in range(48)], 40, 9, seed=0)
