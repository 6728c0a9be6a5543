"""Sweep files: what ships loads, every mistake is named at once, and the digest knows what a trial depends on."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from normscape.config import Config
from normscape.errors import ConfigError
from normscape.sweepconfig import ForestSweep, ThresholdsSweep, load_sweep, sweep_digest, sweep_folder, trial_experiment

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


def write(folder: Path, **changes: object) -> Path:
    """A sweep of the shipped demo; `name=None` leaves an entry out."""
    demo = str(ROOT / "configs" / "chairs" / "demo.yaml")
    settings = {"kind": "thresholds", "name": "short", "experiment": demo} | changes
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in settings.items() if value is not None}))
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_load(path: Path) -> None:
    """With the experiment that they name, and a trial's training is the warm-up and the sweep's own steps."""
    sweep, config, _ = load_sweep(path)
    if isinstance(sweep, ThresholdsSweep):
        gan = trial_experiment(sweep, config).gan
        assert gan.steps == gan.warmup_steps + sweep.steps


def test_both_kinds_ship() -> None:
    assert {load_sweep(path)[0].kind for path in SHIPPED} == {"thresholds", "forest"}


def test_all_problems_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, trials=0, tau_spread=1.0, nonsense=1, name=None)
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    text = str(caught.value)
    assert "4 problems" in text
    assert "trials: must be whole number, at least 1; found 0" in text
    assert "tau_spread: must be number, above 1; found 1.0" in text
    assert "nonsense: unknown key; known here: name," in text
    assert "name: is required" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_cut": 300}, r"first_cut \(300\) must be a multiple of report_every \(250\)"),
        ({"first_cut": 4000}, r"first_cut \(4000\) must not exceed steps \(2000\)"),
        ({"weight_min": 3.0, "weight_max": 2.0}, "weight_max must be larger"),
        ({"gan": {"speed": 1}}, r"gan \(speed\) must be fields"),
        ({"gan": {"steps": 1}}, r"gan \(steps\) must leave"),
        ({"kind": "forests"}, "found 'forests'; a sweep is one of thresholds, forest"),
        ({"experiment": "gone.yaml"}, "cannot read configuration .*gone.yaml"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_sweep(write(tmp_path, **changes))


def test_an_experiment_is_not_a_sweep() -> None:
    with pytest.raises(ConfigError, match="run it with `normscape run`"):
        load_sweep(ROOT / "configs" / "chairs" / "paper.yaml")


def test_overrides_change_the_sweep(tmp_path: Path) -> None:
    sweep, _, _ = load_sweep(write(tmp_path), ["trials=3", "gan.batch_size=8"])
    assert isinstance(sweep, ThresholdsSweep)
    assert (sweep.trials, sweep.gan) == (3, {"batch_size": 8})


def test_a_training_that_does_not_fit_is_explained(tmp_path: Path) -> None:
    sweep, config, _ = load_sweep(write(tmp_path, gan={"batch_size": 6}))
    assert isinstance(sweep, ThresholdsSweep)
    with pytest.raises(ConfigError, match=r"sweep short: .*\n.*gan.batch_size: must be a multiple"):
        trial_experiment(sweep, config)


def test_digest_knows_what_a_trial_depends_on(tmp_path: Path) -> None:
    """More trials, more of them at once or another description go on with the same folder; other steps or another GAN do not."""
    path = write(tmp_path)
    sweep, config, _ = load_sweep(path)
    same, _, _ = load_sweep(path, ["trials=40", "max_concurrent=8", "gpus_per_trial=0.5", "description=other"])
    other, _, _ = load_sweep(path, ["steps=4000"])
    deeper = config.model_copy(update={"gan": config.gan.model_copy(update={"r1_gamma": 2.5})})
    scored = config.model_copy(update={"scoring": config.scoring.model_copy(update={"folds": 3})})
    digest = sweep_digest(sweep, config)
    assert sweep_digest(same, config) == digest
    assert sweep_digest(other, config) != digest
    assert sweep_digest(sweep, deeper) != digest
    assert sweep_digest(sweep, scored) == digest  # thresholds do not depend on how anomalies are scored
    assert sweep_folder(sweep, config, tmp_path) == tmp_path / "sweeps" / f"short-{digest[:8]}"


def test_a_forest_depends_on_the_scoring() -> None:
    sweep, config, _ = load_sweep(ROOT / "configs" / "sweeps" / "forest.yaml")
    scored: Config = config.model_copy(update={"scoring": config.scoring.model_copy(update={"folds": 3})})
    assert isinstance(sweep, ForestSweep)
    assert sweep_digest(sweep, scored) != sweep_digest(sweep, config)
