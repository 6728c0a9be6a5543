"""Stage `prepare` on rendered chairs (few angles, small images) and on a small cohort."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from normscape.config import Config
from normscape.configio import load_config
from normscape.datasets.patches import PatchSource
from normscape.datasets.prepared import PreparedCohort
from normscape.datasets.samples import SampleSet, load_samples
from normscape.errors import DataError
from normscape.stages import prepare
from normscape.stages.core import StageContext
from normscape.stages.files import read_json, write_json
from normscape.training.recorder import SilentRecorder

DEMO = Path(__file__).resolve().parents[2] / "configs" / "chairs" / "demo.yaml"
SMALL = ("data.angle_min_degrees=10", "data.angle_max_degrees=50", "data.angle_step_degrees=20", "data.supersample=1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered once for all tests of this file."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def context(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> StageContext:
    monkeypatch.setenv("NORMSCAPE_CACHE", str(cache))
    folder = tmp_path / "prepare"
    folder.mkdir()
    return StageContext(load_config(DEMO, SMALL), folder, {"prepare": folder}, torch.device("cpu"), SilentRecorder())


def with_config(context: StageContext, *overrides: str) -> StageContext:
    config: Config = load_config(DEMO, [*SMALL, *overrides])
    return replace(context, config=config)


def test_the_table_lists_every_sample_and_the_split_is_by_subject(context: StageContext) -> None:
    metrics = prepare.run(context)
    table = pq.read_table(context.folder / "samples.parquet").to_pandas()
    split = read_json(context.folder / "split.json")
    assert list(table.columns) == ["sample_id", "subject", "subject_index", "split", "angle_degrees"]
    assert len(table) == split["samples"] == 3 * len(split["subjects"])
    assert sorted(table.angle_degrees.unique()) == [10.0, 30.0, 50.0]
    assert (table.groupby("subject").split.nunique() == 1).all()
    assert (len(split["train"]), len(split["test"])) == (40, 9)
    assert set(split["train"]) | set(split["test"]) | set(split["unused"]) == set(split["subjects"])
    assert metrics["train_samples"] == 120.0
    assert metrics["test_samples"] == 27.0


def test_open_samples_gives_the_two_splits(context: StageContext) -> None:
    prepare.run(context)
    split = read_json(context.folder / "split.json")
    train, test = prepare.open_samples(context)
    assert {train.subjects[i] for i in train.subject.tolist()} == set(split["train"])
    assert {test.subjects[i] for i in test.subject.tolist()} == set(split["test"])
    assert not set(train.sample_id.tolist()) & set(test.sample_id.tolist())
    assert train.batch(torch.tensor([0, 1])).shape == (2, 3, 32, 32)


def test_another_seed_is_another_split(context: StageContext) -> None:
    prepare.run(context)
    one = read_json(context.folder / "split.json")["test"]
    prepare.run(with_config(context, "seed=1"))
    assert read_json(context.folder / "split.json")["test"] != one


def test_changed_data_are_noticed(context: StageContext) -> None:
    prepare.run(context)
    path = context.folder / "split.json"
    write_json(path, read_json(path) | {"samples": 5})
    with pytest.raises(DataError, match=r"the data changed since .* run again with `--from prepare`"):
        prepare.open_samples(context)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("image_channels=1", "gives images of shape"),
        (
            "attributes.angle.column=age_years",
            r"attributes\.angle\.column: source chairs has no `age_years`; it has angle_degrees",
        ),
        ("attributes.angle.output_dim=2", r"attributes\.angle\.output_dim: column `angle_degrees` has 1 values, not 2"),
        ("data.train_subjects=400", "400"),
    ],
)
def test_data_that_do_not_fit_the_configuration_are_refused(context: StageContext, override: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare.run(with_config(context, override))


# ---- a brain


@pytest.fixture
def brain(
    tmp_path: Path, prepared_cohort: Callable[..., PreparedCohort], toy_brain_config: Callable[..., Config]
) -> StageContext:
    """Eight-voxel patches of the small cohort: 4 subjects to learn from, 2 for the test."""
    folder = tmp_path / "prepare"
    folder.mkdir()
    data = {"root": prepared_cohort().folder, "patches_per_subject": 30, "contrast_augmentation": "pca"}
    return StageContext(toy_brain_config(data=data), folder, {"prepare": folder}, torch.device("cpu"), SilentRecorder())


def test_a_brain_s_table_has_ages_and_positions(brain: StageContext) -> None:
    """A row a patch; all scans of a person are in one part, and both parts have both sites."""
    metrics = prepare.run(brain)
    table = pq.read_table(brain.folder / "samples.parquet").to_pandas()
    assert list(table.columns) == [
        "sample_id", "subject", "subject_index", "split", "age_years", "position_mm", "contrast"
    ]  # fmt: skip
    assert len(table) == 8 * 30
    assert (table.groupby("subject").split.nunique() == 1).all()
    assert table.groupby("subject").age_years.nunique().to_dict() == {"p-0": 2} | {f"p-{i}": 1 for i in range(1, 7)}
    assert (metrics["train_subjects"], metrics["test_subjects"], metrics["unused_subjects"]) == (4, 2, 1)
    split = read_json(brain.folder / "split.json")
    for part in ("train", "test"):
        assert {int(name[-1]) % 2 for name in split[part]} == {0, 1}
    train, _ = prepare.open_samples(brain)
    assert table.position_mm[int(train.sample_id[3])].tolist() == train.values["position_mm"][3].tolist()


def spread(samples: SampleSet) -> torch.Tensor:
    """Standard deviations of the contrast shifts."""
    assert isinstance(samples.images, PatchSource)
    assert samples.images.shifts is not None
    return samples.images.shifts.std


def test_a_brain_s_patches_are_those_that_were_split(brain: StageContext) -> None:
    """Reopened from the folder's tables; contrast shifts are learnt from training subjects only."""
    prepare.run(brain)
    train, test = prepare.open_samples(brain)
    whole = prepare.open_prepared(brain.config, brain.folder)
    assert torch.equal(test.batch(torch.tensor([5])), whole.batch(test.sample_id[5:6]))
    names = read_json(brain.folder / "split.json")["train"]
    assert torch.equal(spread(train), spread(load_samples(brain.config.data, 8, seed=brain.config.seed, learn_from=names)))
    assert not torch.equal(spread(train), spread(load_samples(brain.config.data, 8, seed=brain.config.seed)))


def test_a_brain_in_two_dimensions_is_refused(brain: StageContext) -> None:
    with pytest.raises(DataError, match=r"source brain gives images of shape \(1, 8, 8, 8\)"):
        prepare.run(replace(brain, config=brain.config.model_copy(update={"dims": 2})))
