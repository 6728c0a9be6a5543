"""Order, keys, skipping, resuming and running anew, with small real stages."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from normscape.config import Config
from normscape.configio import config_digest, load_config
from normscape.errors import UserError
from normscape.stages.core import STAGES, RunResult, Stage, StageContext, StageFunction, run_stages, stage_keys
from normscape.stages.files import read_json, write_json
from normscape.stages.status import stage_status

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "configs" / "chairs" / "demo.yaml"
TOYS = (
    Stage("first", ("seed",)),
    Stage("second", ("latents",), ("first",)),
    Stage("third", ("scoring",), ("second",)),
)
TOY_NAMES = [stage.name for stage in TOYS]


def toy_config(*overrides: str) -> Config:
    return load_config(DEMO, ["name=toy", "device=cpu", *overrides])


class Toys:
    """Stage functions that write what they were given, and count how often they ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failing = ""

    def functions(self) -> dict[str, StageFunction]:
        return {name: self._function(name) for name in TOY_NAMES}

    def _function(self, name: str) -> StageFunction:
        def run(context: StageContext) -> dict[str, float]:
            self.ran.append(name)
            context.recorder.metrics({"loss": 0.5}, 1)
            (context.folder / "inputs.json").write_text(json.dumps({k: v.name for k, v in context.inputs.items()}))
            if name == self.failing:
                raise RuntimeError("broken")
            return {"count": float(len(self.ran)), "odd": float("nan")}

        return run

    def go(self, folder: Path, config: Config | None = None, **options: Any) -> RunResult:
        self.ran.clear()
        return run_stages(config or toy_config(), folder, stages=TOYS, extra=self.functions(), **options)


@pytest.fixture
def toys() -> Toys:
    return Toys()


class Heard:
    """A listener that keeps what it heard."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def stage_started(self, name: str, resumed: bool) -> None:
        self.events.append(("started", name, resumed))

    def stage_skipped(self, name: str, manifest: Mapping[str, Any]) -> None:
        self.events.append(("skipped", name, manifest["stage"]))

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        self.events.append(("metrics", stage, dict(values), step))

    def progress(self, stage: str, done: int, total: int, unit: str) -> None:
        self.events.append(("progress", stage, done, total, unit))

    def stage_finished(self, name: str, manifest: Mapping[str, Any]) -> None:
        self.events.append(("finished", name, manifest["metrics"]))

    def failed(self, name: str, error: BaseException) -> None:
        self.events.append(("failed", name, type(error)))


# ---- the real stages


def test_the_stages_are_those_of_the_design_in_order() -> None:
    names = [stage.name for stage in STAGES]
    trained = ["prepare", "auxiliary", "gan", "controllers", "latents", "normals", "network"]
    assert names == [*trained, "project", "score", "brains", "report"]
    for i, stage in enumerate(STAGES):
        assert set(stage.inputs) <= set(names[:i])
        assert set(stage.sections) <= set(Config.model_fields)


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ("seed=1", "prepare"),
        ("data.supersample=4", "prepare"),
        ("augmentation.noise_std_max=0.2", "auxiliary"),
        ("attributes.identity.auxiliary.epochs=3", "auxiliary"),
        ("attributes.angle.tau_same=0.02", "gan"),
        ("attributes.angle.weight_same=2", "gan"),
        ("attributes.angle.latent_dim=47", "gan"),
        ("gan.steps=7", "gan"),
        ("controllers.epochs=3", "controllers"),
        ("latents.samples=99", "latents"),
        ("network.images=3", "network"),
        ("projection.steps=3", "project"),
        ("scoring.folds=3", "score"),
        ("description=other", "report"),
        ("gan.checkpoint_interval=3", ""),
        ("network.checkpoint_interval=3", ""),
        ("device=cpu", ""),
    ],
)
def test_a_change_reruns_the_stage_that_reads_it_and_later_ones_that_depend_on_it(change: str, first: str) -> None:
    before, after = stage_keys(load_config(DEMO)), stage_keys(load_config(DEMO, [change]))
    changed = [name for name in before if before[name] != after[name]]
    assert (changed[0] if changed else "") == first
    if first and first != "controllers":  # latents do not read the controllers
        names = list(before)
        apart = {"network"} if first in ("auxiliary", "gan", "latents") else set()  # it reads the images alone
        assert changed == [name for name in names[names.index(first) :] if name not in apart]


def test_every_changeable_field_belongs_to_a_stage() -> None:
    """Nothing but the device, and what is compared afterwards, can change without a stage noticing."""
    read = {section for stage in STAGES for section in stage.sections}
    assert set(Config.model_fields) - read == {"device", "evaluation"}


# ---- running


def test_a_run_leaves_finished_folders_manifests_and_a_record(tmp_path: Path, toys: Toys) -> None:
    config = toy_config()
    result = toys.go(tmp_path, config)
    keys = stage_keys(config, TOYS)
    assert toys.ran == TOY_NAMES
    assert {p.name for p in (tmp_path / "toy").iterdir()} == {
        *(f"{name}-{keys[name][:8]}" for name in TOY_NAMES),
        "config.yaml",
        "run.json",
        ".lock",
    }
    folder = result.stages["second"]
    assert {p.name for p in folder.iterdir()} == {"manifest.json", "metrics.jsonl", "inputs.json"}
    manifest = read_json(folder / "manifest.json")
    assert set(manifest) == {
        "stage",
        "key",
        "config_digest",
        "code_version",
        "inputs",
        "seed",
        "metrics",
        "seconds",
        "started",
        "finished",
        "normscape_version",
    }
    assert manifest["key"] == keys["second"]
    assert manifest["inputs"] == {"first": keys["first"]}
    assert manifest["metrics"] == {"count": 2.0}  # what is no number is left out
    assert manifest["config_digest"] == config_digest(config)
    assert load_config(tmp_path / "toy" / "config.yaml") == config
    record = read_json(tmp_path / "toy" / "run.json")
    assert record["config_digest"] == config_digest(config)
    assert record["stages"] == {name: path.name for name, path in result.stages.items()}


def test_a_stage_sees_the_finished_folders_of_all_earlier_stages(tmp_path: Path, toys: Toys) -> None:
    result = toys.go(tmp_path)
    seen = json.loads((result.stages["third"] / "inputs.json").read_text())
    assert seen == {name: result.stages[name].name for name in ("first", "second")}


def test_what_is_up_to_date_is_skipped(tmp_path: Path, toys: Toys) -> None:
    toys.go(tmp_path)
    heard = Heard()
    result = toys.go(tmp_path, listener=heard)
    assert toys.ran == []
    assert heard.events == [("skipped", name, name) for name in TOY_NAMES]
    assert set(result.stages) == set(TOY_NAMES)


def test_a_changed_setting_reruns_only_what_reads_it_and_keeps_the_old(tmp_path: Path, toys: Toys) -> None:
    toys.go(tmp_path)
    toys.go(tmp_path, toy_config("latents.samples=99"))
    assert toys.ran == ["second", "third"]
    toys.go(tmp_path)  # back to the first setting: nothing is lost
    assert toys.ran == []


def test_to_stops_early_and_from_runs_anew_with_all_later_ones(tmp_path: Path, toys: Toys) -> None:
    toys.go(tmp_path, last="first")
    assert toys.ran == ["first"]
    toys.go(tmp_path)
    assert toys.ran == ["second", "third"]
    toys.go(tmp_path, first="second")
    assert toys.ran == ["second", "third"]
    toys.go(tmp_path, fresh=True)
    assert toys.ran == TOY_NAMES
    assert not list((tmp_path / "toy").glob("*.old"))


def test_from_runs_what_is_missing_before(tmp_path: Path, toys: Toys) -> None:
    toys.go(tmp_path, first="third")
    assert toys.ran == TOY_NAMES


def test_an_interrupted_rerun_goes_on_and_keeps_the_old_results_until_then(tmp_path: Path, toys: Toys) -> None:
    old = toys.go(tmp_path).stages["second"]
    toys.failing = "second"
    with pytest.raises(RuntimeError):
        toys.go(tmp_path, first="second")
    assert read_json(old.with_name(old.name + ".old") / "manifest.json")["stage"] == "second"
    toys.failing = ""
    toys.go(tmp_path)  # plain: what was asked anew is still to do, later stages too
    assert toys.ran == ["second", "third"]
    assert not list((tmp_path / "toy").glob("*.old"))


def test_a_failed_stage_keeps_earlier_work_and_is_resumed(tmp_path: Path, toys: Toys) -> None:
    toys.failing = "second"
    heard = Heard()
    with pytest.raises(RuntimeError, match="broken"):
        toys.go(tmp_path, listener=heard)
    assert heard.events[-1] == ("failed", "second", RuntimeError)
    (partial,) = (tmp_path / "toy").glob("*.partial")
    (partial / "checkpoint").write_text("kept")
    toys.failing = ""
    heard = Heard()
    result = toys.go(tmp_path, listener=heard)
    assert heard.events[:2] == [("skipped", "first", "first"), ("started", "second", True)]
    assert (result.stages["second"] / "checkpoint").read_text() == "kept"


def test_work_of_another_key_is_not_resumed(tmp_path: Path, toys: Toys) -> None:
    """A partial folder that does not say which key it belongs to is not trusted."""
    toys.failing = "second"
    with pytest.raises(RuntimeError):
        toys.go(tmp_path)
    (partial,) = (tmp_path / "toy").glob("*.partial")
    (partial / "checkpoint").write_text("of another configuration")
    (partial / "stage.json").write_text(json.dumps({"key": "other"}))
    toys.failing = ""
    result = toys.go(tmp_path)
    assert not (result.stages["second"] / "checkpoint").exists()


def test_cut_off_between_manifest_and_rename_is_finished(tmp_path: Path, toys: Toys) -> None:
    folder = toys.go(tmp_path).stages["third"]
    os.replace(folder, folder.with_name(folder.name + ".partial"))
    toys.go(tmp_path)
    assert toys.ran == []
    assert folder.exists()


def test_a_finished_folder_without_a_readable_manifest_is_made_anew(tmp_path: Path, toys: Toys) -> None:
    folder = toys.go(tmp_path).stages["third"]
    (folder / "manifest.json").write_text("{")
    toys.go(tmp_path)
    assert toys.ran == ["third"]


def test_a_stage_without_a_function_is_left_out(tmp_path: Path) -> None:
    toys = Toys()
    functions = toys.functions()
    del functions["third"]
    result = run_stages(toy_config(), tmp_path, stages=TOYS, extra=functions)
    assert list(result.stages) == ["first", "second"]


def test_the_mlflow_entry_of_the_record_is_kept(tmp_path: Path, toys: Toys) -> None:
    toys.go(tmp_path)
    path = tmp_path / "toy" / "run.json"
    path.write_text(json.dumps(read_json(path) | {"mlflow": {"run_id": "abc"}}))
    toys.go(tmp_path)
    assert read_json(path)["mlflow"] == {"run_id": "abc"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": "secnd"}, "--from secnd: there is no such stage; did you mean `second`?"),
        ({"last": "zzz"}, "--to zzz: there is no such stage; the stages are first, second, third"),
        ({"first": "third", "last": "first"}, "--from third comes after --to first"),
    ],
)
def test_wrong_stage_names_are_user_errors(tmp_path: Path, toys: Toys, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        toys.go(tmp_path, **options)
    assert toys.ran == []


def test_a_runs_folder_that_is_a_file_is_a_user_error(tmp_path: Path, toys: Toys) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        toys.go(tmp_path / "runs")


def test_ctrl_c_passes_through_and_the_stage_is_resumed(tmp_path: Path) -> None:
    def interrupted(context: StageContext) -> dict[str, float]:
        raise KeyboardInterrupt

    heard = Heard()
    with pytest.raises(KeyboardInterrupt):
        run_stages(toy_config(), tmp_path, stages=TOYS[:1], extra={"first": interrupted}, listener=heard)
    assert heard.events == [("started", "first", False), ("failed", "first", KeyboardInterrupt)]
    (status,) = stage_status(toy_config(), tmp_path, TOYS[:1])
    assert status.state == "interrupted"


# ---- killed, locked, full


LOOPS = (Stage("one", ("seed",)), Stage("two", ("seed",), ("one",)))


def run_loops(runs: Path, pause: float) -> None:
    """Two stages that keep a sum with a checkpoint every five steps, as a training does."""

    def loop(context: StageContext) -> dict[str, float]:
        state = read_json(context.folder / "checkpoint.json") or {"step": 0, "sum": context.config.seed}
        context.recorder.rewind(state["step"])
        for step in range(state["step"] + 1, 41):
            state = {"step": step, "sum": (state["sum"] * 31 + step) % 1009}
            context.recorder.metrics({"sum": state["sum"]}, step)
            context.recorder.progress(step, 40)
            if step % 5 == 0:
                write_json(context.folder / "checkpoint.json", state)
            time.sleep(pause)
        (context.folder / "checkpoint.json").unlink()
        (context.folder / "result.txt").write_text(str(state["sum"]))
        return {"sum": state["sum"]}

    run_stages(toy_config(), runs, stages=LOOPS, extra={"one": loop, "two": loop})


def start_loops(runs: Path, pause: float) -> Any:
    """The same in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=run_loops, args=(runs, pause))
    process.start()
    return process


def stop(process: Any) -> None:
    """SIGKILL: nothing is tidied up."""
    process.kill()
    process.join()


def _results(runs: Path) -> dict[str, str]:
    """Every file of the finished stages but for times."""
    found = {}
    for path in sorted((runs / "toy").glob("*-????????/*")):
        text = path.read_text()
        if path.name == "manifest.json":
            manifest = json.loads(text)
            text = json.dumps({k: v for k, v in manifest.items() if k not in ("seconds", "started", "finished")})
        found[f"{path.parent.name}/{path.name}"] = text
    return found


def _wait_for(condition: Any, seconds: float = 30.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.01)


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_killed_runs_end_with_the_numbers_of_an_undisturbed_one(tmp_path: Path) -> None:
    """SIGKILL in each of two stages, between checkpoints; the third start finishes."""
    calm = tmp_path / "calm"
    run_loops(calm, 0.0)
    runs = tmp_path / "killed"
    for stage in ("one", "two"):
        process = start_loops(runs, 0.02)
        try:
            _wait_for(lambda stage=stage: any(_lines(p) >= 13 for p in runs.glob(f"toy/{stage}-*.partial/metrics.jsonl")))
        finally:
            stop(process)
        assert list(runs.glob(f"toy/{stage}-*.partial"))
    run_loops(runs, 0.0)
    assert _results(runs) == _results(calm)
    assert len(_results(runs)) == 6


def test_a_second_run_of_a_folder_is_refused_while_the_first_works(tmp_path: Path, toys: Toys) -> None:
    process = start_loops(tmp_path, 0.2)
    try:
        _wait_for(lambda: any(_lines(p) >= 1 for p in tmp_path.glob("toy/one-*.partial/metrics.jsonl")))
        with pytest.raises(UserError, match=f"in use by process {process.pid}"):
            toys.go(tmp_path)
    finally:
        stop(process)
    toys.go(tmp_path)  # a killed process holds nothing
    assert toys.ran == TOY_NAMES


@pytest.mark.disk("256k")
def test_a_full_disk_is_one_message_and_finished_work_stays(small_disk: Path, toys: Toys) -> None:
    """Every way our stages write: plain files, NumPy, safetensors, Parquet, metrics."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import save_file

    noise = np.random.default_rng(0).integers(0, 255, 400_000, dtype=np.uint8)

    def by_metrics(context: StageContext) -> None:
        for step in range(100_000):
            context.recorder.metrics({"a long name for a number": float(step)}, step)

    writers = {
        "file": lambda context: (context.folder / "x").write_bytes(noise.tobytes()),
        "numpy": lambda context: np.save(context.folder / "x.npy", noise),
        "safetensors": lambda context: save_file({"x": torch.from_numpy(noise)}, context.folder / "x.safetensors"),
        "parquet": lambda context: pq.write_table(pa.table({"x": noise}), context.folder / "x.parquet"),
        "metrics": by_metrics,
    }
    functions = toys.functions()
    for name, write in writers.items():

        def full(context: StageContext, write: Any = write) -> dict[str, float]:
            write(context)
            return {}

        with pytest.raises(UserError, match=r"disk is full at .*; finished work is kept; free some space and run again"):
            run_stages(toy_config(), small_disk, stages=TOYS, extra=functions | {"second": full}, first="second")
        first = stage_status(toy_config(), small_disk, TOYS)[0]
        assert first.state == "finished", name


# ---- status


def test_status_tells_finished_interrupted_and_waiting(tmp_path: Path, toys: Toys) -> None:
    config = toy_config()
    assert [s.state for s in stage_status(config, tmp_path, TOYS)] == ["waiting"] * 3
    toys.failing = "second"
    with pytest.raises(RuntimeError):
        toys.go(tmp_path)
    found = stage_status(config, tmp_path, TOYS)
    assert [s.state for s in found] == ["finished", "interrupted", "waiting"]
    assert found[0].manifest["stage"] == "first"
    assert found[1].progress["seconds"] >= 0.0
    toys.failing = ""
    toys.go(tmp_path)
    other = stage_status(toy_config("latents.samples=99"), tmp_path, TOYS)
    assert [(s.state, s.others) for s in other] == [("finished", 0), ("waiting", 1), ("waiting", 1)]


def test_status_says_running_while_a_process_works(tmp_path: Path) -> None:
    process = start_loops(tmp_path, 0.2)
    try:
        _wait_for(lambda: any(_lines(p) >= 1 for p in tmp_path.glob("toy/one-*.partial/metrics.jsonl")))
        assert [s.state for s in stage_status(toy_config(), tmp_path, LOOPS)] == ["running", "waiting"]
    finally:
        stop(process)
    assert stage_status(toy_config(), tmp_path, LOOPS)[0].state == "interrupted"
