"""Tables that people keep of their scans: CSV, TSV or Excel; columns with several names, ages and sexes as they are written."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normscape.errors import DataError

MAX_AGE_YEARS = 120.0
_SEXES = {"m": "M", "male": "M", "1": "M", "1.0": "M", "f": "F", "female": "F", "2": "F", "2.0": "F"}
_UNKNOWN = {"", "nan", "n/a", "na", "none", "null", "unknown", "?"}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV, TSV or Excel file; all values as texts without spaces around them.

    Raises:
        DataError: there is no such file, or it is no table with rows.
    """
    import pandas as pd

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        if path.suffix.lower() in (".xls", ".xlsx"):
            frame = pd.read_excel(path, dtype=str, keep_default_na=False)
        else:
            text = path.read_text(encoding="utf-8-sig")
            first = text.partition("\n")[0]
            separator = next((mark for mark in ("\t", ",", ";") if mark in first), ",")
            frame = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except ImportError as error:
        package = "xlrd" if path.suffix.lower() == ".xls" else "openpyxl"
        raise DataError(
            f"{path}: reading Excel files needs {package} (pip install {package}); or save it as CSV beside it"
        ) from error
    except Exception as error:  # pandas and its readers raise errors of many kinds
        raise DataError(f"{path}: not a readable table ({str(error).splitlines()[0] if str(error) else error!r})") from error
    if frame.empty:
        raise DataError(f"{path}: the table has no rows")
    frame.columns = [str(column).strip() for column in frame.columns]
    return [{column: str(value).strip() for column, value in row.items()} for row in frame.to_dict("records")]


def find_column(path: Path, rows: Sequence[Mapping[str, str]], *names: str, needed: bool = True) -> Any:
    """The column with one of these names, in any case, or `NAME (remark)`; None when there is none and none is needed.

    Raises:
        DataError: there is none; the message lists those that there are.
    """
    plain = {column.split("(")[0].strip().lower(): column for column in reversed(list(rows[0]))}
    found = next((plain[name.lower()] for name in names if name.lower() in plain), None)
    if found is None and needed:
        raise DataError(f"{path}: no column {' or '.join(names)}; the columns are {', '.join(rows[0])}")
    return found


def is_unknown(text: str) -> bool:
    """Empty, or one of the words for not knowing."""
    return text.strip().lower() in _UNKNOWN


def to_number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def to_age(text: str) -> tuple[float | None, str]:
    """Age in years, None when unknown; and what is wrong with it."""
    if is_unknown(text):
        return None, ""
    value = to_number(text)
    if value is None:
        return None, f"its age is no number: {text}"
    if not 0.0 <= value <= MAX_AGE_YEARS:
        return None, f"its age is {text}; expected 0 to {MAX_AGE_YEARS:.0f} years"
    return value, ""


def to_sex(text: str) -> str:
    """M, F, or empty; IXI writes 1 and 2."""
    return _SEXES.get(text.strip().lower(), "")
