"""The vendored chairs, their attribution, and the renderer."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from normscape.config import DataConfig
from normscape.datasets import chairs
from normscape.datasets.samples import load_samples
from normscape.errors import DataError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NORMSCAPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def render(angles: tuple[float, ...] = (0.0, 45.0, 90.0), **changes: object) -> NDArray[np.uint8]:
    arguments: dict[str, object] = {
        "image_size": 16,
        "supersample": 2,
        "angles": np.array(angles),
        "chairs": (0, 1),
        "workers": 1,
    }
    return chairs.rendered_chairs(**(arguments | changes))


def test_asset_holds_chairs_for_the_thesis_split() -> None:
    """At least 40 + 9 chairs, every name once."""
    names = chairs.chair_names()
    assert len(names) >= 49
    assert len(set(names)) == len(names)


def test_no_two_chairs_are_the_same_model() -> None:
    seen = set()
    for index in range(len(chairs.chair_names())):
        chair = chairs.load_chair(index)
        seen.add((len(chair.vertices), len(chair.faces), chair.vertices.tobytes()))
    assert len(seen) == len(chairs.chair_names())


def test_every_chair_is_well_formed() -> None:
    """Faces name existing vertices, colours are in range, and the height is that of a seat (20 to 140 cm)."""
    for index, name in enumerate(chairs.chair_names()):
        chair = chairs.load_chair(index)
        assert chair.name == name
        assert chair.faces.max() == len(chair.vertices) - 1
        assert len(chair.colours) == len(chair.faces)
        assert 0 <= chair.colours.min() <= chair.colours.max() <= 1
        assert 20 < np.ptp(chair.vertices[:, 1]) < 140, name


def test_every_chair_has_author_and_licence() -> None:
    """The attribution file lists each chair of the asset, and no other, with author, licence and where it comes from."""
    text = resources.files("normscape.datasets").joinpath("assets/CHAIRS_ATTRIBUTION.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")][2:]
    assert tuple(row[0] for row in rows) == chairs.chair_names()
    for name, title, author, licence, source, link in rows:
        assert title, name
        assert author, name
        assert re.fullmatch(r"CC-BY-3\.0(-US)?|CC0-1\.0|Public Domain Mark 1\.0", licence), name
        assert licence in text.split("| Name |")[0], f"{licence}: no address of its text"
        assert re.match(r"`[\w-]+\.sh3f: ", source), name
        assert link.startswith("<http"), name


def test_asset_is_a_few_megabytes() -> None:
    assert len(resources.files("normscape.datasets").joinpath("assets/chairs.npz").read_bytes()) < 5e6


def test_angle_grid_includes_both_ends() -> None:
    grid = chairs.angle_grid(0.0, 89.9, 0.1)
    assert len(grid) == 900
    assert (grid[0], grid[-1]) == (0.0, 89.9)
    assert chairs.angle_grid(0.0, 90.0, 7.0).tolist() == [7.0 * i for i in range(13)]


def test_rendered_images_are_chairs_on_white(cache: Path) -> None:
    """White at the border, something else inside, other chairs and angles look different, and the cached copy is the same."""
    images = np.array(render())
    assert images.shape == (6, 3, 16, 16)
    assert images.dtype == np.uint8
    border = np.concatenate([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], axis=-1)
    assert (border == 255).all()
    assert (images.min(axis=(1, 2, 3)) < 128).all()
    assert len({image.tobytes() for image in images}) == 6
    assert len(list(cache.iterdir())) == 1
    assert np.array_equal(render(), images)


@pytest.mark.parametrize("index", [0, 12, 40])
def test_chair_fills_the_frame_at_every_angle(index: int) -> None:
    """Over a whole turn the longer extent takes FILL of the frame, and nothing is cut off."""
    images = chairs.render_chunk(index, np.arange(0.0, 360.0, 30.0), 64, 1)
    painted = np.any(images < 255, axis=1)
    rows, columns = np.flatnonzero(np.any(painted, axis=(0, 2))), np.flatnonzero(np.any(painted, axis=(0, 1)))
    longest = max(np.ptp(rows) + 1, 2 * (np.abs(columns - 31.5).max() + 0.5)) / 64
    assert longest == pytest.approx(chairs.FILL, abs=0.05)


def test_growing_angle_turns_the_chair_counter_clockwise() -> None:
    """The front faces the camera at 0 degrees and right at 90: of two posts, the red front one then stands right of the blue."""
    post = np.array([[-0.1, 0, 0], [0.1, 0, 0], [0, 1, 0.1], [0, 1, -0.1]])
    front = np.array([0, 0, 1])
    chair = chairs.Chair(
        name="posts",
        vertices=np.concatenate([post + front, post - front]).astype(np.float32),
        faces=np.array([[0, 1, 2], [0, 1, 3], [4, 5, 6], [4, 5, 7]], dtype=np.int32),
        colours=np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]], dtype=np.float32),
    )
    renderer = chairs.ChairRenderer(chair, image_size=64, supersample=1)

    def places(angle: float) -> list[tuple[float, float]]:
        """Mean (row, column) of the red and of the blue post."""
        red, _, blue = renderer.render(angle).astype(int)
        return [tuple(np.argwhere(mask).mean(axis=0)) for mask in (red > blue, blue > red)]

    (front_row, front_column), (back_row, back_column) = places(0.0)
    assert front_row > back_row + 5  # the camera looks down: what is near is lower in the picture
    assert abs(front_column - back_column) < 2
    (front_row, front_column), (back_row, back_column) = places(90.0)
    assert abs(front_row - back_row) < 2
    assert front_column > back_column + 20


def test_pictures_are_the_same_with_worker_processes(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two worker processes render what one process renders; progress ends at the total."""
    angles = tuple(float(a) for a in np.arange(0, 90, 0.4))  # several pieces a chair
    seen: list[tuple[int, int]] = []
    pooled = np.array(render(angles, workers=2, supersample=1, progress=lambda done, total: seen.append((done, total))))
    monkeypatch.setenv("NORMSCAPE_CACHE", str(tmp_path / "other"))
    assert np.array_equal(render(angles, workers=1, supersample=1), pooled)
    assert seen[-1] == (450, 450)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_damaged_cache_is_rendered_again(cache: Path) -> None:
    images = np.array(render())
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    assert np.array_equal(render(), images)


def test_interrupted_rendering_leaves_nothing_behind(cache: Path) -> None:
    """Ctrl-C while rendering: no file under the final name, no partial file."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(progress=stop)
    assert list(cache.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_clear_message(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without space: a DataError that names the file and NORMSCAPE_CACHE."""
    cache.mkdir()
    part = cache / "full.partial"
    part.symlink_to("/dev/full")

    monkeypatch.setattr(Path, "with_name", lambda self, name: part)
    with pytest.raises(DataError, match=r"(?s)No space left.*NORMSCAPE_CACHE"):
        render(image_size=64)


def test_unwritable_cache_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("NORMSCAPE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="cannot write rendered chairs"):
        render()


def test_old_partial_files_are_removed(cache: Path) -> None:
    """What a killed process left a day ago goes; a younger one may be at work and stays."""
    render()
    (path,) = cache.iterdir()
    path.unlink()
    old, young = cache / f"{path.stem}.1.1.partial", cache / f"{path.stem}.2.2.partial"
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    render()
    assert sorted(p.name for p in cache.iterdir()) == sorted([path.name, young.name])


def test_load_samples_of_chairs(cache: Path) -> None:
    """All chairs at two angles: chair by chair, angle by angle."""
    config = DataConfig(angle_max_degrees=45.0, angle_step_degrees=45.0, supersample=1)
    samples = load_samples(config, 8)
    names = chairs.chair_names()
    assert samples.images.shape == (3, 8, 8)
    assert len(samples.images) == len(samples) == 2 * len(names)
    assert samples.subjects == names
    assert samples.subject.tolist() == [i // 2 for i in range(2 * len(names))]
    assert samples.values["angle_degrees"].shape == (2 * len(names), 1)
    assert samples.values["angle_degrees"][:4, 0].tolist() == [0.0, 45.0, 0.0, 45.0]
    assert torch.equal(samples.sample_id, torch.arange(2 * len(names)))
