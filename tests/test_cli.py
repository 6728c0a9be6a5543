"""The command, as a person types it: exit codes, messages, and what is printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import normscape
from normscape import cli
from normscape.configio import load_config, reference_markdown
from normscape.stages.core import STAGES

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "configs" / "chairs" / "demo.yaml"
QUICK = ["--set", "data.angle_step_degrees=40", "--set", "data.supersample=1", "--set", "device=cpu"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered once for all tests of this file."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path):
    """Runs `normscape ...` and gives (exit code, stdout, stderr)."""
    monkeypatch.setenv("NORMSCAPE_CACHE", str(cache))

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["normscape", *map(str, arguments)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        return int(str(code or 0)), out, err

    return run


# ---- looking


def test_version_and_help(command) -> None:
    """Commands stand under headings; examples and exit codes keep their lines."""
    assert command("--version") == (0, f"normscape {normscape.__version__}\n", "")
    code, out, _ = command("--help")
    assert code == 0
    for name in ("run", "status", "doctor", "config", "report", "init", "export", "import"):
        assert re.search(rf"^  {name} +\w", out, re.MULTILINE), name
    headings = re.findall(r"^(\w[\w ]*):$", out, re.MULTILINE)
    assert headings == ["Options", "Experiments", "Data", "Trained systems", "This program"]
    assert "\n    normscape run configs/chairs/demo.yaml\n" in out
    assert re.search(r"^ +2 +a mistake that you can mend", out, re.MULTILINE)
    assert re.search(r"^ +130 +stopped by Ctrl-C or SIGTERM", out, re.MULTILINE)


def every_command(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command that is no group."""
    for name, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from every_command(found, (*path, name))
        else:
            yield (*path, name)


def test_every_command_explains_itself(command) -> None:
    """A first line that is not cut in the list, words for every option, and examples that this very command can read."""
    group: Any = typer.main.get_command(cli.app)
    for words in every_command(group):
        found: Any = group
        for word in words:
            found = found.commands[word]
        assert "..." not in found.get_short_help_str(80), words
        assert all(option.help for option in found.params if option.param_type_name == "option"), words
        code, out, _ = command(*words, "--help")
        assert code == 0
        if words not in (("config", "reference"),):
            examples = [line.strip() for line in out.partition("Examples:")[2].splitlines() if line.strip()]
            assert examples, words
            for line in examples:
                given = shlex.split(line)[1:]
                assert tuple(given[: len(words)]) == words, line
                found.make_context(words[-1], given[len(words) :])


def test_commands_that_print_tables_speak_json_too() -> None:
    """And those that show progress can be quiet or verbose, under the same letters."""
    group: Any = typer.main.get_command(cli.app)
    options = {words: {flag for option in _found(group, words).params for flag in option.opts} for words in every_command(group)}
    prepare = [("prepare", source) for source in ("ixi", "table", "bids")]
    tables = ("status", "doctor", "score", "register", "promote", "models", "export", "import", "sweep", "distances")
    for words in [*((name,) for name in tables), *prepare, ("prepare", "cases")]:
        assert "--json" in options[words], words
    for words in [*((name,) for name in ("run", "report", "sweep", "distances", "score")), *prepare]:
        assert {"--quiet", "-q", "--verbose", "-v"} <= options[words], words
    assert all("--runs-dir" in options[name,] for name in ("run", "status", "score", "models", "export", "import", "sweep"))


def _found(group: Any, words: tuple[str, ...]) -> Any:
    for word in words:
        group = group.commands[word]
    return group


def test_completion_of_the_shell_knows_commands_options_and_runs(tmp_path: Path) -> None:
    """As bash asks for it."""
    run = tmp_path / "runs" / "first-run"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("name: first-run")

    def completed(line: str) -> list[str]:
        words = line.split(" ")
        environment = os.environ | {
            "PYTHONPATH": str(ROOT / "platform"),
            "_NORMSCAPE_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        }
        code = "import sys; sys.argv = ['normscape']; from normscape.cli import main; main()"
        result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
        return result.stdout.split()

    assert completed("normscape st") == ["status"]
    assert completed("normscape status fi") == ["first-run"]
    assert "--runs-dir" in completed("normscape status --ru")


@pytest.mark.parametrize("colour", [False, True])
def test_colours_are_for_terminals(tmp_path: Path, colour: bool) -> None:
    """None where output is piped, and none in a terminal where NO_COLOR asks for none; tables are not cut to 80 columns."""
    (tmp_path / "none").mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR", "COLUMNS")}
    environment |= {"PYTHONPATH": str(ROOT / "platform"), "TERM": "xterm-256color"} | ({"FORCE_COLOR": "1"} if colour else {})
    command = [sys.executable, "-m", "normscape", "doctor", "--runs-dir", str(tmp_path / "none")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ("\x1b[" in result.stdout) == colour
    if not colour:
        assert max(len(line) for line in result.stdout.splitlines()) > 80


def test_json_is_all_that_is_printed(command, tmp_path: Path) -> None:
    """Of a run that is half done, of this machine, of a configuration."""
    command("run", DEMO, "--to", "prepare", "--no-track", "--quiet", "--runs-dir", tmp_path, *QUICK)
    code, out, err = command("status", "chairs-demo", "--json", "--runs-dir", tmp_path)
    told = json.loads(out)
    assert (code, err, told["run"]) == (0, "", "chairs-demo")
    stages = {stage["stage"]: stage for stage in told["stages"]}
    assert (stages["prepare"]["state"], stages["gan"]["state"]) == ("finished", "waiting")
    assert stages["prepare"]["metrics"]["train_subjects"] == 40
    assert Path(stages["prepare"]["folder"]).is_dir()
    told = json.loads(command("doctor", "--json", "--runs-dir", tmp_path)[1])
    assert {line["what"] for line in told["machine"]} >= {"Python", "device", "cores"}
    assert told["ok"] == all(line["ok"] for part in ("machine", "packages", "extras") for line in told[part])
    told = json.loads(command("config", "show", DEMO, "--json", "--set", "gan.steps=3")[1])
    assert (told["name"], told["gan"]["steps"]) == ("chairs-demo", 3)


def test_quiet_and_verbose_exclude_each_other(command) -> None:
    for flags in (("-q", "-v"), ("--verbose", "--quiet")):
        code, _, err = command("run", DEMO, *flags)
        assert (code, "--quiet and --verbose exclude each other" in err) == (2, True)


def test_verbose_tells_what_led_to_an_error(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "platform")}
    command = [sys.executable, "-m", "normscape", "run", "nope.yaml"]
    for flags, expected in (((), False), (("-v",), True)):
        result = subprocess.run([*command, *flags], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 2
        assert ("Traceback" in result.stderr) == expected
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("cannot read configuration nope.yaml: No such file")
        assert "`normscape init` writes one" in last


def test_config_check_show_and_reference(command, tmp_path: Path) -> None:
    code, out, _ = command("config", "check", DEMO)
    assert (code, "fine; chairs-demo" in out) == (0, True)
    code, out, _ = command("config", "show", DEMO, "--set", "gan.steps=3")
    (tmp_path / "shown.yaml").write_text(out)
    assert load_config(tmp_path / "shown.yaml") == load_config(DEMO, ["gan.steps=3"])
    assert command("config", "reference")[1] == reference_markdown()
    command("config", "reference", "--output", tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == reference_markdown()


def test_doctor_never_fails_and_says_how_to_install_extras(command, tmp_path: Path) -> None:
    code, out, _ = command("doctor", "--runs-dir", tmp_path / "none" / "yet")
    assert code == 0
    for word in ("Python", "device", "cores", "memory", "disk", "cache folder", "torch", "efficientnet-lite-pytorch"):
        assert word in out
    if "missing" in out:
        assert "optional: pip install 'normscape[" in out


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nope.yaml"], "cannot read configuration nope.yaml"),
        (["run", str(DEMO), "--set", "gan.batch_size=30"], "gan.batch_size: must be a multiple of 2^N = 4"),
        (["config", "check", str(DEMO), "--set", "gan.stps=30"], "gan.stps: unknown key; did you mean `steps`?"),
        (["run", str(DEMO), "--from", "gam", "--no-track"], "--from gam: there is no such stage; did you mean `gan`?"),
        (["status", "nope"], "nope: neither a run nor a configuration"),
        (["report", str(DEMO), "--set", "name=never"], "not finished yet: prepare, auxiliary"),
        (["rum", str(DEMO)], "No such command"),
        (["run", str(DEMO), "--bogus"], "No such option"),
        (["run"], "Missing argument"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    command, tmp_path: Path, monkeypatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err


def test_cuda_without_a_gpu_is_a_user_error(command, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    code, _, err = command("run", DEMO, "--to", "prepare", "--no-track", "--runs-dir", tmp_path, *QUICK, "--set", "device=cuda")
    assert (code, "torch finds no GPU" in err) == (2, True)


# ---- running


def test_run_skips_what_is_done_and_status_tells(command, tmp_path: Path) -> None:
    arguments = ["run", DEMO, "--to", "prepare", "--no-track", "--runs-dir", tmp_path, *QUICK]
    code, out, err = command(*arguments)
    assert code == 0
    count = sum(not stage.source for stage in STAGES)  # those for one data source only do not exist for chairs
    assert f"1/{count} prepare: finished in" in err
    assert f"run folder  {tmp_path / 'chairs-demo'}" in out
    code, _, err = command(*arguments)
    assert f"1/{count} prepare: up to date" in err
    for named in (tmp_path / "chairs-demo", "chairs-demo"):
        code, out, _ = command("status", named, "--runs-dir", tmp_path)
        assert code == 0
        rows = {line.split("│")[1].strip(): line for line in out.splitlines() if "│" in line}
        assert "finished" in rows["prepare"]
        assert "train_subjects 40" in rows["prepare"]
        assert "waiting" in rows["gan"]


def test_quiet_says_only_what_finished(command, tmp_path: Path) -> None:
    _, _, err = command("run", DEMO, "--to", "prepare", "--no-track", "--quiet", "--runs-dir", tmp_path, *QUICK)
    assert [line.split(": ")[1].split()[0] for line in err.splitlines()] == ["finished"]


def test_a_recorded_run_is_named_at_the_end(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, out, _ = command("run", DEMO, "--to", "prepare", "--runs-dir", tmp_path, *QUICK)
    assert code == 0
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert f"in {store}" in out
    assert f"mlflow ui --backend-store-uri {store}" in out
    from mlflow import MlflowClient

    run_id = out.split("MLflow      run ")[1].split()[0]
    run = MlflowClient(store).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["prepare/train_subjects"] == 40.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_exits_130_and_goes_on_later(tmp_path: Path, number: signal.Signals) -> None:
    """In the middle of rendering: thousands of images that are not in the cache."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "platform"),
        "NORMSCAPE_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "normscape", "run", str(DEMO), "--to", "prepare", "--no-track", "--runs-dir", str(tmp_path)]
    command += ["--set", "data.angle_step_degrees=0.1", "--set", "device=cpu"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        give_up = time.monotonic() + 60
        while not list(tmp_path.glob("chairs-demo/prepare-*.partial/progress.json")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < give_up
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == f"stopped; finished work is kept; `normscape run {DEMO}` goes on from here"
    assert list(tmp_path.glob("chairs-demo/prepare-*.partial"))
