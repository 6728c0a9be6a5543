"""The locked test: one function opens its images, and every time it does so is written down.

Nothing is ever chosen on these images: no threshold, no setting, no feature. They are read when all of that is fixed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from normscape.datasets.samples import SampleSet
from normscape.errors import DataError
from normscape.evaluation.splits import of_subjects
from normscape.stages.files import read_json

LOCKED = "test"
"""The role, and the name of the split that stage `prepare` keeps for it."""
READINGS_NAME = "readings.jsonl"


@dataclass(frozen=True)
class Reading:
    """One time that the locked test was opened."""

    reader: str
    """Who, and what for."""
    when: str
    """ISO time, UTC."""
    config_digest: str
    """Of the whole configuration that it was read under."""
    images: int
    """Most images of the test that the reader looks at; a whole scan counts once."""
    subjects: int
    """Whose images those are."""


Heard = Callable[[Reading], None]


def open_locked_test(
    prepared: Path, samples: SampleSet, *, reader: str, images: int, digest: str, folder: Path, heard: Heard | None = None
) -> SampleSet:
    """Open the images of the locked test, and write down that this was done.

    The reading stands in `readings.jsonl` before the first image can be looked at, so that a reader who is killed is listed too.

    Args:
        prepared: the finished folder of stage `prepare`.
        samples: all samples, as `open_prepared` gives them.
        reader: who reads, and what for.
        images: how many of the images are going to be read, at most.
        digest: of the whole configuration.
        folder: of the evaluation; `readings.jsonl` is kept in it.
        heard: is told of the reading.

    Returns:
        The samples of the test subjects.

    Raises:
        ValueError: nobody says who reads.
        DataError: there are no test subjects.
    """
    if not reader.strip():
        raise ValueError("the locked test opens only to a reader with a name")
    subjects = read_json(prepared / "split.json").get(LOCKED) or []
    if not subjects:
        raise DataError(f"{prepared}: there are no test subjects; data.test_subjects must be at least 1")
    found = of_subjects(samples, subjects)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    reading = Reading(reader, when, digest, min(images, len(found)), len(subjects))
    _write_down(folder / READINGS_NAME, reading)
    if heard is not None:
        heard(reading)
    return found


def readings(folder: Path) -> list[Reading]:
    """All readings of an evaluation folder, in order; a line that was cut off is left out."""
    path = folder / READINGS_NAME
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(Reading(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def _write_down(path: Path, reading: Reading) -> None:
    """Append a line; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(asdict(reading), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
