"""Metrics of a resumed stage equal those of one that was never cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from normscape.stages.recording import JsonLinesRecorder, Listeners


def recorder(folder: Path) -> JsonLinesRecorder:
    return JsonLinesRecorder(folder, "stage", Listeners())


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_line_a_call_and_null_for_what_is_no_number(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    one.metrics({"a": 1.5, "b": float("nan")}, 3)
    one.metrics({"a": float("inf")}, 4)
    assert lines(tmp_path) == [{"step": 3, "a": 1.5, "b": None}, {"step": 4, "a": None}]


def test_rewind_drops_later_steps(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    for step in range(5):
        one.metrics({"a": step}, step)
    one.rewind(2)
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2]


def test_rewind_of_nothing_is_fine(tmp_path: Path) -> None:
    recorder(tmp_path).rewind(0)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_line_that_was_cut_off_is_dropped_on_resume(tmp_path: Path) -> None:
    recorder(tmp_path).metrics({"a": 1.0}, 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "a": 0.')
    recorder(tmp_path).metrics({"a": 2.0}, 2)
    assert lines(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}]


def test_what_is_measured_again_replaces_the_old_without_rewind(tmp_path: Path) -> None:
    """Two loops count their steps from one in the same file, so that a rewind would drop lines of the other."""
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    for folder in (calm, disturbed):
        folder.mkdir()

    def loop(name: str, first: int, last: int, to: JsonLinesRecorder) -> None:
        for step in range(first, last + 1):
            to.metrics({f"{name}/loss": step / 10}, step)

    one = recorder(calm)
    loop("identity", 1, 6, one)
    loop("angle", 1, 6, one)
    one.close()
    cut_off = recorder(disturbed)
    loop("identity", 1, 6, cut_off)
    loop("angle", 1, 4, cut_off)
    resumed = recorder(disturbed)
    loop("angle", 3, 6, resumed)
    resumed.close()
    assert (calm / "metrics.jsonl").read_bytes() == (disturbed / "metrics.jsonl").read_bytes()


def test_seconds_of_earlier_attempts_count(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text(json.dumps({"done": 3, "total": 9, "unit": "step", "seconds": 100.0}))
    one = recorder(tmp_path)
    assert 100.0 <= one.seconds < 110.0
    one.note_seconds()
    assert json.loads((tmp_path / "progress.json").read_text())["done"] == 3
