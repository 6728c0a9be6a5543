"""The curve of residual against time: whose images, what each run is, and that none is done twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from normscape.benchmark.untrained import untrained_inputs
from normscape.config import Config
from normscape.inversion.projector import Projector
from normscape.stages import curve, project
from normscape.stages.core import StageContext
from normscape.stages.files import read_json
from normscape.stages.models import load_projector
from normscape.stages.shards import QUARANTINE_SCHEMA
from normscape.training.recorder import SilentRecorder

CPU = torch.device("cpu")
DATA = {"train_subjects": 4, "test_subjects": 2, "angle_step_degrees": 20.0, "supersample": 1}
PROJECTION = {"train_samples": 6, "test_samples": 8, "steps": 4, "batch_size": 3, "curve_images": 4, "curve_steps": 40}
PLAN = [("encoder", 0), ("encoder", 10), ("encoder", 25), ("mean", 30), ("mean", 40)]


class CutOff(SilentRecorder):
    """Ctrl-C when so many runs of the curve are done."""

    def __init__(self, runs: int = 99) -> None:
        self.runs = runs

    def progress(self, done: int, total: int, unit: str = "step") -> None:
        if unit == "curve run" and done >= self.runs:
            raise KeyboardInterrupt


@pytest.fixture
def context(toy_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StageContext]:
    """Makes the stage's context on networks with random weights, one of them an encoder: `context(calibration_samples=4)`."""
    monkeypatch.setenv("NORMSCAPE_CACHE", str(tmp_path / "cache"))
    settings = toy_config(data=DATA, projection=PROJECTION, gan={"reconstruction_weight": 1.0}).model_dump()
    for attribute in settings["attributes"]:
        attribute["auxiliary"]["width"] = 8
    config = Config.model_validate(settings)
    inputs = untrained_inputs(config, tmp_path / "inputs")

    def make(**projection: Any) -> StageContext:
        folder = tmp_path / "project"
        folder.mkdir()
        changed = config.model_copy(update={"projection": config.projection.model_copy(update=projection)})
        return StageContext(changed, folder, inputs, CPU, SilentRecorder())

    return make


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "curve.parquet").to_pylist()
    return found


def test_every_run_has_its_own_schedule_and_its_own_time(
    context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The residual of a run is that of a projection with so many steps; of the thesis's way the time is steps times a step's."""
    monkeypatch.setattr(curve, "seconds_per_step", lambda *_: 0.5)
    here = context(calibration_samples=8)
    metrics = project.run(here)
    found = rows(here.folder)
    assert [(row["start"], row["steps"]) for row in found] == PLAN
    chosen = curve.choose(here.config, here.inputs, here.folder)
    projector = load_projector(here.config, here.inputs, CPU)
    for row in found:
        own = projector.changed(start=row["start"], steps=row["steps"])
        again = own.project(chosen.images, chosen.values, chosen.masks).residuals["residual_l1"]
        assert row["residual_l1"] == pytest.approx(again.mean().item(), rel=2e-3)
        assert row["residual_l1_low"] <= row["residual_l1"] <= row["residual_l1_high"]
        assert (row["images"], row["batch"]) == ((4, 1) if row["start"] == "mean" else (4, 3))
        assert row["subjects"] == len(set(chosen.subjects)) > 1
    assert [row["seconds_per_image"] for row in found if row["start"] == "mean"] == [15.0, 20.0]
    assert all(0 < row["seconds_per_image"] < 15 for row in found if row["start"] == "encoder")
    factor = curve.times_faster(found)
    assert metrics.get("times_faster") == factor


def test_a_cut_off_curve_goes_on_and_a_finished_one_is_left_alone(
    context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written stays as it is, its times too."""
    here = context()
    with pytest.raises(KeyboardInterrupt):
        project.run(replace(here, recorder=CutOff(2)))
    first = rows(here.folder)
    assert [(row["start"], row["steps"]) for row in first] == PLAN[:2]
    metrics = project.run(here)
    whole = rows(here.folder)
    assert whole[:2] == first
    assert [(row["start"], row["steps"]) for row in whole] == PLAN

    def project_nothing(*_: object) -> None:
        raise AssertionError("projected again")

    monkeypatch.setattr(Projector, "project", project_nothing)
    assert project.run(here) == metrics
    assert rows(here.folder) == whole


def test_images_are_normal_and_of_subjects_that_no_network_has_seen(context: Callable[..., StageContext]) -> None:
    """Of those for calibration where there are any; what could not be projected is not in it."""
    here = context(calibration_samples=6, curve_images=99)
    project.run(here)
    table = pq.read_table(here.folder / "projections.parquet")
    normal = table.filter(pc.and_(pc.equal(table["split"], "calibration"), pc.equal(table["label"], 0)))
    chosen = curve.choose(here.config, here.inputs, here.folder)
    assert list(chosen.subjects) == normal["subject"].to_pylist()
    assert set(chosen.subjects) <= set(read_json(here.inputs["prepare"] / "split.json")["unused"])
    bad = {"sample_id": normal["sample_id"][0].as_py(), "subject": "", "split": "calibration", "reason": ""}
    pq.write_table(pa.Table.from_pylist([bad], schema=QUARANTINE_SCHEMA), here.folder / "quarantined.parquet")
    assert list(curve.choose(here.config, here.inputs, here.folder).subjects) == normal["subject"].to_pylist()[1:]


def test_without_calibration_test_subjects_give_the_images_and_0_asks_for_no_curve(
    context: Callable[..., StageContext],
) -> None:
    here = context(curve_images=0)
    assert "times_faster" not in project.run(here)
    assert not (here.folder / "curve.parquet").exists()
    asked = here.config.model_copy(update={"projection": here.config.projection.model_copy(update={"curve_images": 2})})
    chosen = curve.choose(asked, here.inputs, here.folder)
    assert len(chosen.images) == 2
    assert set(chosen.subjects) <= set(read_json(here.inputs["prepare"] / "split.json")["test"])


def test_stops_are_counted_in_the_table(context: Callable[..., StageContext]) -> None:
    """`steps_taken` stands there where images may stop, and only there."""
    here = context(curve_images=0, stop_tolerance=0.5, stop_window=2, steps=12)
    project.run(here)
    taken = pq.read_table(here.folder / "projections.parquet")["steps_taken"].to_pylist()
    assert len(taken) == 14
    assert max(taken) <= 12
    assert min(taken) < 12


def test_the_last_run_in_the_thesiss_way_has_all_steps_that_are_allowed() -> None:
    assert curve.planned(1000, encoder=True) == [
        *(("encoder", steps) for steps in (0, 10, 25, 50, 100)),
        *(("mean", steps) for steps in (30, 100, 300, 1000)),
    ]
    assert curve.planned(100, encoder=False) == [("mean", 30), ("mean", 100)]
    assert curve.planned(7, encoder=True) == [("encoder", 0), ("mean", 7)]


def test_the_factor_is_of_the_fastest_run_that_gets_as_low() -> None:
    """Against the longest run from the mean style; none where nothing gets there."""

    def row(start: str, steps: int, seconds: float, l1: float) -> dict[str, Any]:
        return {"start": start, "steps": steps, "seconds_per_image": seconds, "residual_l1": l1}

    thesis = [row("mean", 1000, 20.0, 0.06), row("mean", 100, 2.0, 0.1)]
    ours = [row("encoder", 0, 0.1, 0.08), row("encoder", 25, 0.4, 0.06), row("encoder", 50, 0.8, 0.05)]
    assert curve.times_faster([*ours, *thesis]) == pytest.approx(50.0)
    assert curve.times_faster([ours[0], *thesis]) is None
    assert curve.times_faster(ours) is None
