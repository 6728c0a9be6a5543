"""Projection in shards: cut off and resumed, in batches of another size, with poisoned samples and on a full disk."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from normscape.benchmark.untrained import untrained_inputs
from normscape.config import Config, RandomisationConfig
from normscape.datasets.randomisation import randomised_rows
from normscape.datasets.samples import SampleSet
from normscape.errors import DataError, UserError
from normscape.stages import project, projecting
from normscape.stages.core import StageContext
from normscape.stages.files import read_json
from normscape.stages.shards import Shard, plan_shards, written_aside
from normscape.training.recorder import SilentRecorder

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


def untrained_toy(config: Config) -> Config:
    """Wide enough auxiliary networks for random weights to tell images apart."""
    settings = config.model_dump()
    for attribute in settings["attributes"]:
        attribute["auxiliary"]["width"] = 8
    return Config.model_validate(settings)


@pytest.fixture
def context(
    toy_config: Callable[..., Config], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., StageContext]:
    """Makes the stage's context, in a new folder, on networks with random weights: `context(batch_size=3)`."""
    monkeypatch.setenv("NORMSCAPE_CACHE", str(tmp_path_factory.getbasetemp() / "project-cache"))
    config = untrained_toy(toy_config(data=DATA, projection={"train_samples": 10, "test_samples": 6}))
    inputs = untrained_inputs(config, tmp_path / "inputs")
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


def test_calibration_is_of_subjects_in_neither_split(context: Callable[..., StageContext]) -> None:
    """Its images are of subjects that no network has seen, half of them with a blot; the other splits stay as they are."""
    plain, made = context(), context(calibration_samples=4)
    project.run(plain)
    project.run(made)
    with_it, without = table(made.folder), table(plain.folder)
    rows = with_it.filter(pc.equal(with_it["split"], "calibration"))
    split = read_json(made.inputs["prepare"] / "split.json")
    assert set(rows["subject"].to_pylist()) <= set(split["unused"])
    assert rows["label"].to_pylist() == [0, 1, 0, 1]
    assert with_it.slice(0, without.num_rows).equals(without)


def test_training_images_alone_are_randomised(context: Callable[..., StageContext]) -> None:
    """Those rows say so and show another image; every other row is as it is without."""
    plain = context(calibration_samples=4)
    config = plain.config.model_copy(update={"randomisation": RandomisationConfig(share=0.5)})
    made = replace(context(calibration_samples=4), config=config)
    project.run(plain)
    project.run(made)
    before, after = table(plain.folder), table(made.folder)
    train = np.array(after["split"].to_pylist()) == "train"
    expected = randomised_rows(config.randomisation, config.seed, after["sample_id"].to_pylist()) & train
    changed = after["randomised"].to_numpy() == 1
    np.testing.assert_array_equal(changed, expected)
    assert 0 < changed.sum() < train.sum()
    assert not before["randomised"].to_numpy().any()
    old, new = (np.load(folder / "inputs.npy") for folder in (plain.folder, made.folder))
    np.testing.assert_array_equal((old != new).reshape(len(old), -1).any(1), changed)
    for name in ("residual_l1", "residual_patch8"):
        np.testing.assert_allclose(after[name].to_numpy()[~changed], before[name].to_numpy()[~changed], rtol=2e-3, atol=2e-4)


def test_no_subject_left_for_calibration_is_said(context: Callable[..., StageContext]) -> None:
    made = context(calibration_samples=4)
    path = made.inputs["prepare"] / "samples.parquet"
    samples = pq.read_table(path)
    pq.write_table(samples.filter(pc.not_equal(samples["split"], "unused")), path)
    with pytest.raises(DataError, match=r"projection.calibration_samples: 4 asked for, and the data has no subject left"):
        plan_shards(made.config, made.inputs["prepare"])


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


# ---- poisoned samples


class Damaged(SampleSet):
    """Samples of which one row cannot be read and one holds no numbers."""

    unreadable = not_a_number = -1

    def batch(self, index: torch.Tensor, random: torch.Generator | None = None) -> torch.Tensor:
        if (index == self.unreadable).any():
            raise OSError(f"row {self.unreadable} of {len(index)}: input/output error")
        images = super().batch(index, random)
        images[index == self.not_a_number] = float("nan")
        return images


@pytest.fixture
def damage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Damages what the stage reads: `damage(unreadable=row, not_a_number=row, value=row)`."""

    def make(value: int = -1, **rows: int) -> None:
        sound = projecting.open_prepared

        def opened(config: Config, prepared: Path) -> SampleSet:
            samples = sound(config, prepared)
            damaged = Damaged(**{field.name: getattr(samples, field.name) for field in fields(samples)})
            damaged.__dict__.update(rows)
            if value >= 0:
                damaged.values["angle_degrees"][value] = float("inf")
            return damaged

        monkeypatch.setattr(projecting, "open_prepared", opened)

    return make


def planned(context: StageContext) -> list[Shard]:
    return plan_shards(context.config, context.inputs["prepare"])


def test_poisoned_samples_are_left_out_and_listed_and_the_others_are_as_without_them(
    context: Callable[..., StageContext], damage: Callable[..., None]
) -> None:
    """An image that raises, one that is not finite, and a value that is not finite; two of them in one shard."""
    calm, poisoned = context(), context()
    project.run(calm)
    first, second, *_ = planned(calm)
    rows = {"unreadable": int(first.rows[2]), "not_a_number": int(first.rows[0]), "value": int(second.rows[3])}
    damage(**rows)
    metrics = project.run(poisoned)

    listed = pq.read_table(poisoned.folder / "quarantined.parquet").to_pylist()
    assert [record["sample_id"] for record in listed] == [rows[key] for key in ("not_a_number", "unreadable", "value")]
    assert [record["reason"] for record in listed] == [
        "the image is not finite",
        f"OSError: row {rows['unreadable']} of 1: input/output error",
        "angle_degrees is not finite",
    ]
    assert metrics["quarantined"] == 3
    whole, rest = table(calm.folder), table(poisoned.folder)
    keep = [sample not in rows.values() for sample in whole["sample_id"].to_pylist()]
    expected = whole.filter(pa.array(keep))
    for name in ("sample_id", "subject", "split", "label", "angle_degrees", "blot_radius_px"):
        assert rest[name].to_pylist() == expected[name].to_pylist(), name
    np.testing.assert_allclose(rest["residual_l1"].to_numpy(), expected["residual_l1"].to_numpy(), rtol=2e-3)
    assert {record["subject"] for record in listed} <= set(whole["subject"].to_pylist())
    for name in ("inputs.npy", "reconstructions.npy"):
        assert len(np.load(poisoned.folder / name)) == len(rest)
    assert np.array_equal(np.load(poisoned.folder / "inputs.npy"), np.load(calm.folder / "inputs.npy")[keep])


def test_a_sample_whose_result_is_not_finite_is_quarantined(
    context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would spoil every score fitted on the table."""
    here = context()
    real, calls = projecting.Projector.residuals, []

    def residuals(*arguments):
        found = real(*arguments)
        calls.append(1)
        if len(calls) == 2:
            found["residual_l2"][1] = float("nan")
        return found

    monkeypatch.setattr(projecting.Projector, "residuals", residuals)
    assert project.run(here)["quarantined"] == 1
    (record,) = pq.read_table(here.folder / "quarantined.parquet").to_pylist()
    assert (record["sample_id"], record["reason"]) == (int(planned(here)[1].rows[1]), "residual_l2 is not finite")
    assert len(table(here.folder)) == len(np.load(here.folder / "reconstructions.npy")) == 15
    assert np.isfinite(table(here.folder)["residual_l2"].to_numpy()).all()


def test_an_error_of_every_sample_is_not_the_samples_fault(
    context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    def project_nothing(*arguments):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(projecting.Projector, "project", project_nothing)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        project.run(context())


def test_nothing_left_to_project_is_an_error(context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch) -> None:
    here = context()
    sound = projecting.open_prepared

    def opened(config: Config, prepared: Path) -> SampleSet:
        samples = sound(config, prepared)
        samples.values["angle_degrees"][:] = float("nan")
        return samples

    monkeypatch.setattr(projecting, "open_prepared", opened)
    with pytest.raises(DataError, match="no sample could be projected; the first one: angle_degrees is not finite"):
        project.run(here)
    assert pq.read_metadata(here.folder / "quarantined.parquet").num_rows == 16


# ---- disks


@pytest.mark.disk("64k")
def test_a_full_disk_keeps_finished_shards_and_the_next_run_goes_on(
    context: Callable[..., StageContext], small_disk: Path
) -> None:
    calm, cut = context(), replace(context(), folder=small_disk)
    metrics = project.run(calm)
    (small_disk / "other").write_bytes(bytes(40_000))
    with pytest.raises(UserError, match=r"disk is full at .*/shards/\d+\..*; finished work is kept"):
        project.run(cut)
    kept = {path.name: path.stat().st_mtime_ns for path in (small_disk / "shards").glob("*.parquet")}
    assert 0 < len(kept) < len(planned(cut))
    assert not list((small_disk / "shards").glob("*.tmp"))
    (small_disk / "other").unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert project.run(cut) == metrics
    assert table(small_disk) == table(calm.folder)


def test_two_writers_of_a_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    """The last one stays, whole."""
    with written_aside(tmp_path / "a") as one:
        one.write_text("one")
        with written_aside(tmp_path / "a") as two:
            two.write_text("two")
        assert (tmp_path / "a").read_text() == "two"
    assert (tmp_path / "a").read_text() == "one"


def test_a_file_that_was_not_finished_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")

    def fail() -> None:
        with written_aside(tmp_path / "a") as aside:
            aside.write_text("t")
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert (tmp_path / "a").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
