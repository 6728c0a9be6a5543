"""`normscape explore` as a process: its address, its end, and mistakes that are one message."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from normscape.cli import main
from normscape.explore.server import bind
from tests.explore.visitors import Browser

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["Ctrl-C", "SIGTERM", "closed terminal"])
def test_it_serves_until_it_is_stopped(chairs_run: Path, tmp_path: Path, ended_by: signal.Signals) -> None:
    """It prints its address, answers there, and ends with 130, no stack trace, and no file left."""
    if signal.getsignal(ended_by) is signal.SIG_IGN:
        pytest.skip("ignored here, as by nohup")
    command = [sys.executable, "-m", "normscape", "explore", "--run", str(chairs_run), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "platform"), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"page  http://127\.0\.0\.1:(\d+)/\n", line)
        assert found is not None, line or process.communicate()[1]
        person = Browser(int(found[1])).opened()
        assert person.ask("GET", "/api/about").json["name"] == "toy"
        assert list(tmp_path.glob("normscape-explore-*"))
        process.send_signal(ended_by)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, "Traceback" in err) == (130, False), err
    assert not list(tmp_path.glob("normscape-explore-*"))


def test_mistakes_are_one_message(
    chairs_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = [
            ([], "give one of --run FOLDER and --model"),
            (["--run", "a", "--model", "b"], "give one of --run FOLDER and --model"),
            (["--run", str(tmp_path / "nothing")], "no run folder"),
            (["--model", "brain"], "expected models:/NAME@ALIAS"),
            (["--run", str(chairs_run), "--port", port], f"--port {port}: in use"),
            (["--run", str(chairs_run), "--port", "0", "--folder", "/proc/nothing"], "--folder /proc/nothing: cannot be made"),
        ]
        for arguments, message in cases:
            with pytest.raises(SystemExit) as ended:
                main(["explore", *arguments])
            err = capsys.readouterr().err
            assert (ended.value.code, message in err, "Traceback" in err) == (2, True, False), (arguments, err)
    monkeypatch.setenv("NORMSCAPE_EXPLORE_TOKEN", "short")
    with pytest.raises(SystemExit) as ended:
        main(["explore", "--run", str(chairs_run), "--port", "0"])
    assert ended.value.code == 2
    assert "NORMSCAPE_EXPLORE_TOKEN: expected at least 16 characters" in capsys.readouterr().err
