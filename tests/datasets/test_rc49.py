"""The RC-49 reader, on small files in that format: whole and broken ones."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from normscape.config import DataConfig
from normscape.datasets.samples import SampleSet, StoredImages, load_samples
from normscape.errors import DataError

TYPES, ANGLES = 3, (0.0, 30.0, 89.9, 90.0, 200.0)


def arrays() -> dict[str, np.ndarray]:
    """Three chair types at five angles, shuffled; image i is filled with i + 10 * channel."""
    order = np.random.default_rng(0).permutation(TYPES * len(ANGLES))
    images = np.zeros((len(order), 3, 16, 16), dtype=np.uint8)
    images += (
        np.arange(len(order), dtype=np.uint8)[:, None, None, None] + np.array([0, 10, 20], dtype=np.uint8)[None, :, None, None]
    )
    return {
        "images": images[order],
        "labels": np.tile(np.array(ANGLES, dtype=np.float32), TYPES)[order],
        "types": np.repeat(np.arange(TYPES), len(ANGLES))[order],
        "indx_train": np.arange(4),
    }


def write(path: Path, **changes: np.ndarray | None) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in (arrays() | changes).items():
            if value is not None:
                file[key] = value
    return path


def load(path: Path, size: int = 16) -> object:
    return load_samples(DataConfig(source="rc49", path=path), size)


def pictures(samples: SampleSet) -> torch.Tensor:
    """uint8 (N, 3, S, S)."""
    assert isinstance(samples.images, StoredImages)
    return samples.images.tensor


def test_reads_the_angles_asked_for_in_order_of_type_and_angle(tmp_path: Path) -> None:
    """0.0 and 89.9 are included, although 89.9 is stored in single precision; 90 and 200 are left out."""
    samples = load_samples(DataConfig(source="rc49", path=write(tmp_path / "rc49.h5")), 16)
    assert samples.subjects == ("type-00", "type-01", "type-02")
    assert samples.subject.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert samples.values["angle_degrees"].flatten().tolist() == pytest.approx([0.0, 30.0, 89.9] * 3)
    assert pictures(samples)[:, 1, 5, 5].tolist() == [10 + n for n in (0, 1, 2, 5, 6, 7, 10, 11, 12)]
    assert samples.sample_id.tolist() == list(range(9))


def test_larger_images_are_averaged_over_squares(tmp_path: Path) -> None:
    data = arrays()["images"].copy()
    data[:, :, 0, 0] = 200
    samples = load_samples(DataConfig(source="rc49", path=write(tmp_path / "rc49.h5", images=data)), 8)
    assert pictures(samples).shape == (9, 3, 8, 8)
    assert pictures(samples)[0, 0].flatten().tolist()[:2] == [50, 0]


def test_float_images_of_0_to_255_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "rc49.h5", images=arrays()["images"].astype(np.float32))
    assert pictures(load_samples(DataConfig(source="rc49", path=path), 16))[0, 2, 0, 0] == 20


def with_nan(key: str) -> np.ndarray:
    data = arrays()[key].astype(np.float32)
    data.reshape(-1)[3] = np.nan
    return data


BROKEN: dict[str, tuple[dict[str, np.ndarray | None], str]] = {
    "no images": ({"images": None}, "no dataset 'images', found indx_train, labels, types"),
    "no labels": ({"labels": None}, "no dataset 'labels'"),
    "no types": ({"types": None}, "no dataset 'types'"),
    "no indx_train": ({"indx_train": None}, "no dataset 'indx_train'"),
    "channels last": (
        {"images": np.zeros((15, 16, 16, 3), np.uint8)},
        r"images: expected shape \(N, 3, H, H\), found \(15, 16, 16, 3\)",
    ),
    "flat images": ({"images": np.zeros((15, 768), np.uint8)}, r"images: expected 4 dimensions, found shape \(15, 768\)"),
    "text labels": ({"labels": np.array([b"left"] * 15)}, "labels: expected numbers, found dtype"),
    "labels too few": ({"labels": np.zeros(14, np.float32)}, "labels: expected 15 entries, as many as images, found 14"),
    "types of two dimensions": ({"types": np.zeros((15, 2))}, r"types: expected 1 dimension, found shape \(15, 2\)"),
    "NaN label": ({"labels": with_nan("labels")}, "labels: expected finite numbers, found nan in row 3"),
    "NaN image": ({"images": with_nan("images")}, "images: expected values from 0 to 255, found nan"),
    "images of -1 to 1": ({"images": np.full((15, 3, 16, 16), -1.0)}, "images: expected values from 0 to 255, found -1"),
    "images of 0 to 1": ({"images": np.full((15, 3, 16, 16), 0.5)}, "scaled to 0..1"),
    "labels in radians and beyond": ({"labels": np.linspace(-3, 3, 15)}, "labels: expected degrees from 0 to 360, found -3 to 3"),
    "labels beyond 360": ({"labels": np.linspace(0, 400, 15)}, "labels: expected degrees from 0 to 360, found 0 to 400"),
    "no label in range": ({"labels": np.full(15, 180.0)}, r"labels: none in \[0, 89.9\] degrees, found 180 to 180"),
    "broken types": ({"types": np.full(15, 0.5)}, "types: expected whole numbers from 0, found 0.5"),
    "images too small": ({"images": np.zeros((15, 3, 12, 12), np.uint8)}, "multiple of image_size 16, found 12 x 12"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_names_file_expectation_and_finding(tmp_path: Path, name: str) -> None:
    changes, message = BROKEN[name]
    path = write(tmp_path / "rc49.h5", **changes)
    with pytest.raises(DataError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "nothing.h5")


def test_file_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "rc49.h5").write_text("<html>not found</html>")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        load(tmp_path / "rc49.h5")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_file(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "rc49.h5")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match="truncated"):
        load(path)
