"""Kept results: found by what they were made of, whatever happens to their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from normscape.evaluation.kept import Kept

IMAGES = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
MASKS = torch.ones(2, 1, 2, 2, dtype=torch.bool)
KNOWN = {"age": torch.tensor([[1.0], [2.0]]), "site": torch.tensor([[0.0], [1.0]])}


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept", "context")
    path = kept.path(IMAGES, MASKS, KNOWN)
    assert kept.read(path) is None
    arrays = {"columns/residual_l1": np.array([0.1, 0.2]), "coordinates/other": np.arange(12.0).reshape(2, 3, 2)[:, ::-1]}
    kept.write(path, arrays)
    found = Kept(tmp_path / "kept", "context").read(path)
    assert found is not None
    assert set(found) == set(arrays)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    assert [file.name for file in (tmp_path / "kept").iterdir()] == [path.name]  # nothing half-written


def test_anything_else_is_another_result(tmp_path: Path) -> None:
    """Another context, image, mask, condition, or condition's name."""
    kept, other = Kept(tmp_path, "context"), IMAGES.clone()
    other[1, 2, 1, 1] += 1
    hidden = MASKS.clone()
    hidden[0, 0, 0, 0] = False
    paths = [
        kept.path(IMAGES, MASKS, KNOWN),
        Kept(tmp_path, "another").path(IMAGES, MASKS, KNOWN),
        kept.path(other, MASKS, KNOWN),
        kept.path(IMAGES, hidden, KNOWN),
        kept.path(IMAGES, None, KNOWN),
        kept.path(IMAGES, MASKS, KNOWN | {"age": torch.tensor([[1.0], [2.5]])}),
        kept.path(IMAGES, MASKS, {"years": KNOWN["age"], "site": KNOWN["site"]}),
        kept.path(IMAGES[:1], MASKS[:1], {name: value[:1] for name, value in KNOWN.items()}),
    ]
    assert len(set(paths)) == len(paths)
    assert kept.path(IMAGES, MASKS, dict(reversed(KNOWN.items()))) == paths[0]


def test_a_damaged_file_is_as_good_as_none(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "context")
    path = kept.path(IMAGES, None, {})
    path.write_bytes(b"not what was kept")
    assert kept.read(path) is None
