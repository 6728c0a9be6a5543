"""Tables: units, empty cells, targets, and what the files hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from normscape.benchmark.results import Ratio, Results, Row
from normscape.benchmark.table import COLUMNS, print_results, row_cells, seconds_text, to_json, to_markdown, write_results
from normscape.benchmark.timing import Timing

ROW = Row(
    "chairs-cpu", "training step (D + G)", 32, Timing(0.2, 0.19, 0.21, 5, 2**30), Timing(0.4, 0.39, 0.41, 5, 2**30), 8e9, 160e9
)  # fmt: skip
ALONE = Row("chairs-cpu", "projection step", 1, Timing(0.0123, 0.0123, 0.0123, 1, 2**29))


@pytest.fixture
def results() -> Results:
    """Two rows, three ratios and one case that was left out."""
    ratios = [
        Ratio("chairs-cpu", "first", 0.2, "at most", 0.25),
        Ratio("chairs-cpu", "second", 2.4, "at least", 2.5),
        Ratio("chairs-cpu", "third", 1.0),
    ]
    skipped = [("chairs-cpu", "rendering", "embreex is not installed")]
    return Results({"device": "CPU", "cores": 2}, [ROW, ALONE], ratios, skipped, {"chairs-cpu": {"steps": 14000.0}})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (123.4, "123 s"),
        (2.0, "2.00 s"),
        (0.9999, "1000 ms"),
        (0.01234, "12.3 ms"),
        (0.001, "1.00 ms"),
        (0.000256, "256 µs"),
        (2e-7, "0.20 µs"),
    ],
)
def test_seconds_have_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_cells_of_a_row() -> None:
    """With a reference: its time and the quotient; with counted work: rate and share; without: empty cells."""
    assert row_cells(ROW)[:3] == ("chairs-cpu", "training step (D + G)", "32")
    assert row_cells(ROW)[3:] == (
        "200 ms", "10%", "6.25 ms", "400 ms", "2.00", "8.00", "40.0", "25%", "1024 MiB",
    )  # fmt: skip
    assert row_cells(ALONE)[6:11] == ("",) * 5


def test_markdown_is_a_table_with_as_many_cells_as_columns(results: Results) -> None:
    """Targets are met or missed, machine and gaps are named."""
    text = to_markdown(results)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 + 2 + 2
    assert all(line.count("|") == len(COLUMNS) + 1 for line in lines[5:])
    assert "device: CPU, cores: 2" in text
    assert "| chairs-cpu | first | 0.200 | at most 0.25: met |" in text
    assert "| chairs-cpu | second | 2.400 | at least 2.5: missed |" in text
    assert "| chairs-cpu | third | 1.000 |  |" in text
    assert "Not measured: chairs-cpu, rendering: embreex is not installed." in text


def test_an_empty_result_is_no_broken_table() -> None:
    """Nothing measured: no header without rows."""
    assert "|" not in to_markdown(Results({"device": "CPU"}))


def test_json_holds_seconds_and_bytes(results: Results) -> None:
    """Plain numbers, with the derived ones beside them."""
    data = json.loads(json.dumps(to_json(results)))
    assert data["rows"][0]["timing"] == {"median": 0.2, "low": 0.19, "high": 0.21, "repeats": 5, "peak_bytes": 2**30}
    assert data["rows"][0]["speedup"] == 2.0
    assert data["rows"][0]["seconds_per_image"] == 0.2 / 32
    assert data["rows"][1]["reference"] is None
    assert (data["rows"][0]["operations"], data["rows"][0]["operations_per_second"]) == (8e9, 40e9)
    assert data["rows"][0]["share_of_product"] == 0.25
    assert data["rows"][1]["share_of_product"] is None
    assert data["facts"] == {"chairs-cpu": {"steps": 14000.0}}
    assert [ratio["met"] for ratio in data["ratios"]] == [True, False, None]
    assert data["skipped"] == [{"config": "chairs-cpu", "case": "rendering", "why": "embreex is not installed"}]


def test_files_are_replaced_and_nothing_else_is_left(results: Results, tmp_path: Path) -> None:
    """A second run overwrites the first."""
    write_results(Results({"device": "CPU"}), tmp_path)
    write_results(results, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["benchmark.json", "benchmark.md"]
    assert (tmp_path / "benchmark.md").read_text(encoding="utf-8") == to_markdown(results)


def test_the_terminal_shows_ratios_and_gaps(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    """What was left out is said, not hidden."""
    print_results(results)
    shown = capsys.readouterr().out
    assert "met" in shown
    assert "embreex is not installed" in shown
