"""Files of a simulated cohort while it is being made: settings, rows of a table, big arrays. All survive a killed process."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normscape.errors import DataError

SETTINGS_NAME = "simulation.json"

Row = dict[str, str]


@contextmanager
def writing(folder: Path, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Make the folder and note the settings in it, and turn errors of the file system into one clear message.

    Raises:
        DataError: the folder holds something made with other settings, or cannot be written.
    """
    noted = folder / SETTINGS_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if noted.exists():
            try:
                found = json.loads(noted.read_text(encoding="utf-8"))
            except ValueError:
                found = "something unreadable"
            if found != settings:
                raise DataError(f"{noted}: the folder holds another simulated cohort: expected {settings}, found {found}")
        else:
            write_text(noted, json.dumps(settings, indent=2))
        yield settings
    except OSError as error:
        raise DataError(f"cannot write the simulated cohort to {folder}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write aside, then rename."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_rows(path: Path, rows: Sequence[Row], *, header: bool) -> None:
    """A CSV file of these rows, with the keys of the first as columns; written aside, then renamed."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", newline="", encoding="utf-8") as file:
        if rows:
            writer = csv.DictWriter(file, list(rows[0]))
            if header:
                writer.writeheader()
            writer.writerows(rows)
    os.replace(part, path)


def read_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """Rows of a CSV file without a header; a last line that was cut off is left out, an absent file has none."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1].splitlines()
    return [dict(zip(columns, row, strict=True)) for row in csv.reader(complete) if len(row) == len(columns)]


class ArrayFile:
    """An .npy file that is filled row by row, by one process or several in turn, under a name of its own until it is finished.

    Plain writes and no memory map: a full disk is an error then, and not a bus error.

    Args:
        path: final name.
        shape: of the whole array.
        dtype: of its values.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path, self.dtype, self.shape = path, dtype, shape
        self.part = path.with_name(f"{path.stem}.partial.npy")
        if not self.part.exists() and not path.exists():
            with self.part.open("wb") as file:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
        with (self.part if self.part.exists() else path).open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            self.start = file.tell()

    def write(self, place: int, values: NDArray[Any]) -> None:
        """Write one row."""
        with self.part.open("r+b") as file:
            file.seek(self.start + place * int(np.prod(self.shape[1:])) * self.dtype.itemsize)
            file.write(np.ascontiguousarray(values, dtype=self.dtype).tobytes())

    def finish(self) -> None:
        """Give the file its final name."""
        if self.part.exists():
            os.replace(self.part, self.path)
