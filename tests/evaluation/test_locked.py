"""The locked test: nothing else in the package reads it, and every reading is written down."""

from __future__ import annotations

import re
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import normscape.evaluation
from normscape.evaluation.evaluating import evaluate
from normscape.evaluation.locked import READINGS_NAME, Reading, open_locked_test, readings
from normscape.stages.prepare import open_prepared

if TYPE_CHECKING:
    from tests.evaluation.conftest import Prepared

PACKAGE = Path(normscape.evaluation.__file__).parent


def test_nothing_else_reads_the_test_split() -> None:
    """No other module names the split, opens samples by split, or hands the whole sample set on."""
    names_split = re.compile(r"""["']test["']|open_samples|split\.json|split\[LOCKED|get\(LOCKED""")
    allowed = {
        "locked.py": None,
        "splits.py": {"split.json"},  # for the training subjects and those left over
        "experiment.py": {"split.json"},  # for the cohort's name
    }
    for path in sorted(PACKAGE.glob("*.py")):
        found = set(names_split.findall(path.read_text(encoding="utf-8")))
        permitted = allowed.get(path.name, set())
        assert permitted is None or found <= permitted, f"{path.name} reads the test split: {found - permitted}"
    opening = [path.name for path in PACKAGE.glob("*.py") if "open_locked_test(" in path.read_text(encoding="utf-8")]
    assert sorted(opening) == ["experiment.py", "locked.py"]
    opened = [path.name for path in PACKAGE.glob("*.py") if "open_prepared(" in path.read_text(encoding="utf-8")]
    assert opened == ["experiment.py"]


def test_a_reading_is_written_down_before_anything_is_read(chairs: Prepared, tmp_path: Path) -> None:
    config, folder = chairs.config, chairs.experiment.prepared
    samples, heard = open_prepared(config, folder), []

    def hear(reading: Reading) -> None:
        assert readings(tmp_path) == [reading]  # it stands in the file already
        heard.append(reading)

    found = open_locked_test(folder, samples, reader="pca, seed 0", images=30, digest="d", folder=tmp_path, heard=hear)
    assert len(found) == 14 * 4
    (reading,) = heard
    assert (reading.reader, reading.config_digest, reading.images, reading.subjects) == ("pca, seed 0", "d", 30, 14)
    open_locked_test(folder, samples, reader="again", images=1000, digest="d", folder=tmp_path)
    assert [r.images for r in readings(tmp_path)] == [30, 56]  # not more than there are


def test_nobody_reads_without_a_name(chairs: Prepared, tmp_path: Path) -> None:
    config, folder = chairs.config, chairs.experiment.prepared
    with pytest.raises(ValueError, match="with a name"):
        open_locked_test(folder, open_prepared(config, folder), reader=" ", images=1, digest="d", folder=tmp_path)
    assert readings(tmp_path) == []


def test_many_readers_at_once_lose_no_line(chairs: Prepared, tmp_path: Path) -> None:
    samples, folder = open_prepared(chairs.config, chairs.experiment.prepared), chairs.experiment.prepared
    with ThreadPool(8) as pool:
        pool.map(
            lambda i: open_locked_test(folder, samples, reader=f"reader {i}", images=1, digest="d", folder=tmp_path), range(40)
        )
    assert {reading.reader for reading in readings(tmp_path)} == {f"reader {i}" for i in range(40)}
    (tmp_path / READINGS_NAME).open("a").write('{"reader": "cut o')
    assert len(readings(tmp_path)) == 40


def test_every_unit_leaves_one_reading(chairs: Prepared) -> None:
    """Also through the callback; a second evaluation, in which nothing is left to do, reads nothing."""
    heard: list[Reading] = []
    evaluate(chairs.config, chairs.runs, heard=heard.append)
    folder = chairs.experiment.folder
    expected = sorted(f"{name}, seed {seed}: patch scores" for name in ("near", "blind") for seed in (0, 1))
    assert sorted(reading.reader for reading in heard) == expected
    assert readings(folder) == heard
    assert {reading.config_digest for reading in heard} == {chairs.experiment.digest}
    evaluate(chairs.config, chairs.runs, heard=heard.append)
    assert len(heard) == len(readings(folder)) == 4
