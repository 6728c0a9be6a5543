"""Stage `network`: the network that a run keeps is the detector of the evaluation, and a training cut off loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from normscape.baselines import Training
from normscape.baselines.anomalies import TrainingAnomalies, scene_of
from normscape.baselines.conditional_network import ConditionalNetwork
from normscape.benchmark.untrained import untrained_inputs
from normscape.config import Config
from normscape.datasets.batches import HealthyImages, ImageBatch
from normscape.datasets.prepared import PreparedCohort
from normscape.errors import CheckpointError
from normscape.evaluation.experiment import load_families
from normscape.stages import network as stage
from normscape.stages.core import StageContext, stage_keys
from normscape.stages.network import load_network
from normscape.stages.prepare import open_samples
from normscape.training.recorder import SilentRecorder

CPU = torch.device("cpu")
NETWORK: dict[str, Any] = {"images": 96, "width": 8, "batch_size": 8, "checkpoint_interval": 4}


class CutOff(SilentRecorder):
    """Ctrl-C as soon as so many images have been looked at."""

    def __init__(self, after: int) -> None:
        self.after = after

    def progress(self, done: int, total: int, unit: str = "step") -> None:
        if done >= self.after and total == NETWORK["images"]:
            raise KeyboardInterrupt


@pytest.fixture(params=["chairs", "brains"])
def context(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StageContext]:
    """Makes the stage's context, in a new folder each time, on chairs and on patches of brains under masks."""
    if request.param == "chairs":
        monkeypatch.setenv("NORMSCAPE_CACHE", str(tmp_path / "cache"))
        make: Callable[..., Config] = request.getfixturevalue("toy_config")
        data = {"train_subjects": 4, "test_subjects": 2, "angle_step_degrees": 30.0, "supersample": 1}
        config = make(data=data, network=NETWORK)
    else:
        cohort: Callable[..., PreparedCohort] = request.getfixturevalue("prepared_cohort")
        make = request.getfixturevalue("toy_brain_config")
        config = make(data={"root": str(cohort().folder), "patches_per_subject": 8}, network=NETWORK)
    inputs = untrained_inputs(config, tmp_path / "inputs")
    count = iter(range(100))

    def new(recorder: SilentRecorder | None = None, folder: Path | None = None) -> StageContext:
        folder = folder or tmp_path / f"network-{next(count)}"
        folder.mkdir(exist_ok=True)
        return StageContext(config, folder, inputs, CPU, recorder or SilentRecorder(), stage_keys(config)["network"])

    return new


def _test_images(context: StageContext) -> ImageBatch:
    _, samples = open_samples(context)
    return HealthyImages(samples, context.config.value_attributes).batch(torch.arange(6))


def test_it_is_the_detector_of_the_evaluation(context: Callable[..., StageContext]) -> None:
    """Read back from its file it says what the detector says that was fitted to the same images with the same seed; what it says
    of an image does not depend on the others."""
    here = context()
    metrics = stage.run(here)
    assert metrics["steps"] == 12
    assert metrics["loss"] > 0
    config = here.config
    samples, _ = open_samples(here)
    healthy = HealthyImages(samples, config.value_attributes)
    anomalous = TrainingAnomalies(config, load_families(config), healthy, config.seed)
    scene, images = scene_of(config), NETWORK["images"]
    training = Training(config, healthy, anomalous, scene, len(healthy), images, config.seed, CPU, {}, lambda done, total: None)
    fitted = ConditionalNetwork(width=8, batch_size=8).fit(training)
    network = load_network(config, {"network": here.folder}, CPU)
    assert network is not None
    batch = _test_images(here)
    said = network.log_odds(batch.images, batch.conditions, batch.masks)
    np.testing.assert_allclose(said.numpy(), fitted.decision_function(batch), rtol=1e-5, atol=1e-6)
    alone = batch.rows(slice(2, 3))
    torch.testing.assert_close(network.log_odds(alone.images, alone.conditions, alone.masks), said[2:3], rtol=1e-4, atol=1e-5)


def test_cut_off_and_resumed_is_the_same(context: Callable[..., StageContext]) -> None:
    """Twice cut off, once between checkpoints: the same weights and loss as of a training in one go; no checkpoint is left."""
    whole = context()
    expected = stage.run(whole)
    torn = context(CutOff(48))
    for after in (48, 80):
        with pytest.raises(KeyboardInterrupt):
            stage.run(context(CutOff(after), torn.folder))
    kept = [path.name for path in sorted((torn.folder / "checkpoints").iterdir())]
    assert kept == ["checkpoint-00000004", "checkpoint-00000008"]
    assert stage.run(context(folder=torn.folder)) == expected
    one, other = (load_file(folder / stage.NETWORK_NAME) for folder in (whole.folder, torn.folder))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=0, msg=name)
    assert not list((torn.folder / "checkpoints").iterdir())


def test_files_that_cannot_be_used(context: Callable[..., StageContext]) -> None:
    """Missing, damaged, or of a wider network: an error that names the file."""
    here = context()
    path = here.folder / stage.NETWORK_NAME
    with pytest.raises(CheckpointError, match=r"network\.safetensors: not a readable conditional network"):
        stage.TrainedNetwork(here.config, here.folder, CPU)
    stage.run(here)
    wider = here.config.model_copy(update={"network": here.config.network.model_copy(update={"width": 16})})
    with pytest.raises(CheckpointError, match="holds another network than the configuration describes"):
        stage.TrainedNetwork(wider, here.folder, CPU)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a readable conditional network"):
        stage.TrainedNetwork(here.config, here.folder, CPU)


def test_without_images_there_is_no_such_stage(toy_config: Callable[..., Config]) -> None:
    """Then no key changes; with it those of the stages that hear it do, but not with the interval of its checkpoints."""
    none, some, often = (toy_config(network=network) for network in ({}, NETWORK, NETWORK | {"checkpoint_interval": 1}))
    without, keys = stage_keys(none), stage_keys(some)
    assert "network" not in without
    assert list(keys)[list(keys).index("network") + 1] == "project"
    changed = {name for name in without if keys[name] != without[name]}
    assert changed == {"project", "score", "report"}
    assert stage_keys(often) == keys
    assert load_network(none, {}, CPU) is None
