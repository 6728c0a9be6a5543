"""Frames show what the networks make of a value, whoever asks, and cost only once."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from normscape.datasets import slices
from normscape.datasets.prepared import PreparedCohort
from normscape.datasets.samples import to_uint8
from normscape.errors import DataError, UserError
from normscape.explore.render import MOST_FRAMES, Renderer, picture
from normscape.explore.slab import PLANES, patch_positions
from normscape.explore.trained import Trained, load_run
from normscape.images import image_grid
from normscape.networks.generator import draw_latents
from normscape.report.pictures import flat
from normscape.stages.files import discard
from normscape.training.controllers import with_value
from normscape.training.seeding import seeded


def frames(png: bytes, count: int) -> list[NDArray[np.uint8]]:
    """The frames of a strip."""
    return np.split(np.asarray(Image.open(io.BytesIO(png))), count, axis=1)


def test_a_frame_is_the_generator_s_image_at_that_value(chairs: Trained) -> None:
    renderer = Renderer(chairs)
    found = frames(renderer.strip("seed:5", "angle", [10.0, 80.0], {}, ""), 2)
    z = draw_latents(1, chairs.generator, seeded(chairs.config.seed, "explore", 5))
    for frame, value in zip(found, (10.0, 80.0), strict=True):
        styles = with_value(chairs.generator, chairs.controllers["angle"], chairs.generator.mapping(z), torch.tensor([[value]]))
        with torch.no_grad():
            expected = to_uint8(chairs.generator.synthesize(styles))[0].permute(1, 2, 0).numpy()
        assert np.abs(frame.astype(int) - expected.astype(int)).max() <= 1
    assert (found[0] != found[1]).any()
    [other] = frames(renderer.strip("seed:6", "angle", [10.0], {}, ""), 1)
    assert (other != found[0]).any()


def test_a_subject_of_the_run_is_its_reconstruction_at_its_own_value(chairs: Trained, chairs_run: Path) -> None:
    """What the page shows of a test image at its known angle is what stage `project` rebuilt; elsewhere it is something else."""
    renderer = Renderer(chairs)
    assert renderer.subjects is not None
    folder = next(chairs_run.glob("project-*"))
    table = pq.read_table(folder / "projections.parquet")
    rebuilt, inputs = np.load(folder / "reconstructions.npy"), np.load(folder / "inputs.npy")
    described = renderer.subjects.described()
    assert described
    for subject in described:
        row, angle = int(subject["who"].split(":")[1]), subject["values"]["angle"]
        assert (table["split"][row].as_py(), table["label"][row].as_py()) == ("test", 0)
        own, low, high = frames(renderer.strip(subject["who"], "angle", [angle, 0.0, 90.0], {}, ""), 3)
        assert np.abs(own.astype(int) - rebuilt[row].transpose(1, 2, 0)).max() <= 1
        assert (low != high).any()
        original = np.asarray(Image.open(io.BytesIO(renderer.original(subject["who"]))))
        assert (original == inputs[row].transpose(1, 2, 0)).all()


def test_what_was_made_is_kept(chairs: Trained) -> None:
    """The same values again cost nothing, alone or among others, and look the same."""
    renderer = Renderer(chairs)
    both = frames(renderer.strip("seed:1", "angle", [1.0, 2.0], {}, ""), 2)
    assert renderer.made == 2
    [again] = frames(renderer.strip("seed:1", "angle", [2.0], {}, ""), 1)
    assert renderer.made == 2
    assert (again == both[1]).all()
    renderer.strip("seed:1", "angle", [2.0, 3.0], {}, "")
    assert renderer.made == 3


@pytest.mark.parametrize(
    ("who", "control", "values", "asked", "message"),
    [
        ("seed:1", "angle", [91.0], {}, "the model knows 0 to 90 degrees; asked for 91"),
        ("seed:1", "angle", [float("nan")], {}, "asked for nan"),
        ("seed:1", "identity", [1.0], {}, "no slider"),
        ("seed:1", "angle", [1.0], {"age": 3.0}, "no slider"),
        ("seed:1", "angle", [1.0] * (MOST_FRAMES + 1), {}, "expected 1 to"),
        ("seed:1", "angle", [], {}, "expected 1 to"),
        ("seed:9999999999", "angle", [1.0], {}, "expected seed:N"),
        ("../etc", "angle", [1.0], {}, "expected seed:N"),
        ("subject:123456", "angle", [1.0], {}, "not one of the images"),
    ],
)
def test_what_nobody_can_ask_for(
    chairs: Trained, who: str, control: str, values: list[float], asked: dict[str, float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Renderer(chairs).strip(who, control, values, asked, "")


def test_a_brain_in_three_planes(brains: Trained) -> None:
    """Each plane is another picture of the same brain, the age changes it, and nothing lies outside the atlas's brain."""
    renderer = Renderer(brains)
    assert renderer.planes == PLANES
    assert list(renderer.controls) == ["age"]
    seen = [frames(renderer.strip("seed:1", "age", [30.0, 70.0], {}, plane), 2) for plane in PLANES]
    for young, old in seen:
        assert (young != old).any()
        assert (young[0] == 0).all()
        assert (young > 0).mean() > 0.2
    assert (seen[0][0] != seen[1][0]).any()
    with pytest.raises(DataError, match="plane: choose axial"):
        renderer.strip("seed:1", "age", [30.0], {}, "oblique")


def test_slices_of_patches_are_turned_as_those_of_whole_brains() -> None:
    """On this page, on that of a run, and in the sample grids of a training."""
    volume = torch.randint(255, (1, 4, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = slices.panel(volume[0].numpy(), (2, 0, 0), slices.brain_box(np.ones(volume.shape[1:])), (slices.AXIAL,))
    for found in (picture(volume), flat(volume.numpy())):
        assert (found == expected[..., None]).all()
    assert (image_grid(volume[None], columns=1, gap=0)[0].numpy() == expected).all()


def test_patches_lie_where_the_networks_learned_that_they_lie(
    brains: Trained, prepared_cohort: Callable[..., PreparedCohort]
) -> None:
    """Positions are those that `PatchSource` gives the same patches."""
    from normscape.datasets.patches import POSITION_COLUMN, open_patches

    cohort = prepared_cohort()
    data = brains.config.data.model_copy(update={"patches_per_subject": 8, "spacing_mm": 2.0})
    source = open_patches(data, 8, cohort=PreparedCohort.open(cohort.folder), seed=0)
    found = patch_positions(
        source.center.astype(np.int64), 8, np.asarray(source.cohort.atlas_mask), np.asarray(source.cohort.affine)
    )
    assert torch.allclose(found, source.values()[POSITION_COLUMN], atol=1e-3)


def test_a_run_without_controllers_cannot_be_shown(chairs_run: Path, tmp_path: Path) -> None:
    """The message names the stage; without projected images the page shows generated ones only."""
    copy = tmp_path / chairs_run.name
    shutil.copytree(chairs_run, copy)
    discard(next(copy.glob("project-*")))
    assert load_run(copy).projector is None
    discard(next(copy.glob("controllers-*")))
    with pytest.raises(UserError, match="not finished yet: controllers"):
        load_run(copy)
