"""Projection in shards: cut off and resumed, and in batches of another size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from normscape.config import Config
from normscape.inversion.style_space import WhitenedSubspace, to_tensors
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.networks.controller import Controller
from normscape.networks.generator import Generator, draw_latents
from normscape.stages import prepare, project
from normscape.stages.core import StageContext
from normscape.training.checkpoint import save_module
from normscape.training.recorder import SilentRecorder
from normscape.training.seeding import seeded

CPU = torch.device("cpu")
DATA = {"train_subjects": 4, "test_subjects": 2, "angle_step_degrees": 30.0, "supersample": 1}


class CutOff(SilentRecorder):
    """Ctrl-C as soon as so many images are projected; counts what it hears."""

    def __init__(self, after: int = 10**9) -> None:
        self.after, self.heard = after, 0

    def progress(self, done: int, total: int, unit: str = "step") -> None:
        self.heard += 1
        if done >= self.after:
            raise KeyboardInterrupt


@pytest.fixture
def context(
    toy_config: Callable[..., Config], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., StageContext]:
    """Makes the stage's context, in a new folder, on networks with random weights: `context(batch_size=3)`."""
    monkeypatch.setenv("NORMSCAPE_CACHE", str(tmp_path_factory.getbasetemp() / "project-cache"))
    config = toy_config(data=DATA, projection={"train_samples": 10, "test_samples": 6})
    settings = config.model_dump()
    for attribute in settings["attributes"]:
        attribute["auxiliary"]["width"] = 8
    config = Config.model_validate(settings)
    inputs = {name: tmp_path / name for name in ("prepare", "auxiliary", "gan", "controllers", "latents")}
    for folder in inputs.values():
        folder.mkdir()
    torch.manual_seed(3)
    for attribute in config.attributes:
        save_module(AuxiliaryNetwork.from_config(attribute, config), inputs["auxiliary"] / f"{attribute.name}.safetensors")
    for attribute in config.value_attributes:
        save_module(Controller(attribute, config.controllers), inputs["controllers"] / f"{attribute.name}.safetensors")
    generator = Generator.from_config(config)
    save_module(generator, inputs["gan"] / "generator.safetensors")
    with torch.no_grad():
        styles = generator.mapping(draw_latents(256, generator, seeded(0, "test")))
    space = {name: WhitenedSubspace.fit(styles[:, generator.subspace_slice(name)]) for name in generator.subspaces}
    save_file(to_tensors(space), inputs["latents"] / "style_space.safetensors")
    prepare.run(StageContext(config, inputs["prepare"], {}, CPU, SilentRecorder()))
    count = iter(range(100))

    def make(**projection: int) -> StageContext:
        folder = tmp_path / f"project-{next(count)}"
        folder.mkdir()
        changed = config.model_copy(update={"projection": config.projection.model_copy(update=projection)})
        return StageContext(changed, folder, inputs, CPU, CutOff())

    return make


def table(folder: Path) -> pa.Table:
    return pq.read_table(folder / "projections.parquet")


def test_a_stage_cut_off_goes_on_with_the_missing_shards_and_ends_the_same(context: Callable[..., StageContext]) -> None:
    calm, cut = context(), context()
    metrics = project.run(calm)
    with pytest.raises(KeyboardInterrupt):
        project.run(replace(cut, recorder=CutOff(after=8)))
    assert sorted(p.name for p in (cut.folder / "shards").glob("*.parquet")) == ["00000.parquet", "00001.parquet"]
    written = (cut.folder / "shards" / "00001.parquet").stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt):
        project.run(replace(cut, recorder=CutOff(after=12)))
    assert (cut.folder / "shards" / "00001.parquet").stat().st_mtime_ns == written  # not projected again
    assert project.run(cut) == metrics
    assert table(cut.folder) == table(calm.folder)
    assert sorted(p.name for p in cut.folder.iterdir()) == sorted(p.name for p in calm.folder.iterdir())
    for name in ("inputs.npy", "reconstructions.npy", "rotated.npy", "rotated.json"):
        assert (cut.folder / name).read_bytes() == (calm.folder / name).read_bytes(), name


def test_a_stage_cut_off_while_it_tidies_up_projects_nothing_again(context: Callable[..., StageContext]) -> None:
    """The joined table stands for the shards: some of them may be gone."""
    cut = context()
    metrics = project.run(cut)
    before = table(cut.folder)
    (cut.folder / "shards").mkdir()
    (cut.folder / "shards" / "00000.parquet").write_bytes(b"")
    recorder = CutOff()
    assert project.run(replace(cut, recorder=recorder)) == metrics
    assert recorder.heard == 0
    assert table(cut.folder) == before
    assert not (cut.folder / "shards").exists()


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_batch_size_does_not_change_the_results(context: Callable[..., StageContext], batch_size: int) -> None:
    """Ids, labels and blots are equal; coordinates, lengths and residuals to float tolerance, images to one grey level."""
    few, many = context(), context(batch_size=batch_size)
    project.run(few)
    project.run(many)
    a, b = table(few.folder), table(many.folder)
    assert a.schema == b.schema
    for name in a.column_names:
        if name.startswith(("length/", "residual_", "coordinates/")):
            x, y = (np.stack(t[name].to_numpy(zero_copy_only=False)) for t in (a, b))
            np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4, err_msg=name)
        else:
            assert a[name].to_pylist() == b[name].to_pylist(), name
    assert np.array_equal(np.load(few.folder / "inputs.npy"), np.load(many.folder / "inputs.npy"))
    images = [np.load(c.folder / "reconstructions.npy").astype(int) for c in (few, many)]
    assert np.abs(images[0] - images[1]).max() <= 1
