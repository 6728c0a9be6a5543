"""From a dropped scan to its map: what `normscape score` does, with the files where the page finds them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from normscape.datasets.cohort import Scan
from normscape.datasets.tabular import MAX_AGE_YEARS, is_unknown, to_sex
from normscape.errors import DataError
from normscape.explore.intake import said
from normscape.explore.storage import Upload
from normscape.explore.work import Tell
from normscape.report.scan_page import OVERLAY_NAME, PAGE_NAME, build_scan_page
from normscape.stages.scan import (
    EXCESS_NAME,
    GRADIENT_NAME,
    MAP_NAME,
    REGIONS_NAME,
    RESIDUAL_NAME,
    SCORE_NAME,
    SUMMARY_NAME,
    ScanModel,
    describe,
    score_scan,
    stripped_by,
    write_summary,
)

RESULTS = "results"
"""Folder of a scan's results, beside the scan."""
SERVED = {
    MAP_NAME: "application/gzip",
    SCORE_NAME: "application/gzip",
    EXCESS_NAME: "application/gzip",
    RESIDUAL_NAME: "application/gzip",
    GRADIENT_NAME: "application/gzip",
    REGIONS_NAME: "text/csv; charset=utf-8",
    SUMMARY_NAME: "application/json",
    OVERLAY_NAME: "image/png",
    PAGE_NAME: "text/html; charset=utf-8",
}
"""The only files of a result that can be asked for."""
STRIPPERS = ("", "none", "deepbet", "hdbet")
"""Ways to find the brain that a person can choose; the first is the model's own."""


@dataclass(frozen=True)
class Asked:
    """What a person says of a scan.

    Attributes:
        age_years: None: it shall be read from the scan.
        sex: M, F or empty; for the page only.
        strip: one of `STRIPPERS`.
    """

    age_years: float | None
    sex: str
    strip: str

    @staticmethod
    def read(age: str, sex: str, strip: str) -> Asked:
        """From the texts of a request.

        Raises:
            DataError: no age that anybody has, or no such way to find the brain.
        """
        if strip not in STRIPPERS:
            raise DataError(f"strip: choose {', '.join(filter(None, STRIPPERS))}, or leave it out")
        if not age.strip():
            raise DataError(
                "The age is missing. The model compares a brain with brains of the same age; write `unknown` to have it read "
                "from the scan itself, which hides what makes a brain look older than it is"
            )
        if is_unknown(age):
            return Asked(None, to_sex(sex), strip)
        try:
            years = float(age)
        except ValueError:
            years = math.nan
        if not 0 < years <= MAX_AGE_YEARS:
            raise DataError(f"age {age[:20]}: expected years above 0 and at most {MAX_AGE_YEARS:g}, or `unknown`")
        return Asked(years, to_sex(sex), strip)


def scoring(upload: Upload, asked: Asked, model: ScanModel) -> Callable[[Tell], dict[str, Any]]:
    """The job that scores a dropped scan.

    Raises:
        UserError: no such way to find the brain.
    """
    chosen = stripped_by(model, asked.strip or None, None)

    def run(tell: Tell) -> dict[str, Any]:
        known = Scan(upload.path, upload.path.name.split(".")[0], age_years=asked.age_years, sex=asked.sex)
        try:
            result = score_scan(known, chosen, upload.folder / RESULTS, estimate_age=asked.age_years is None, progress=tell)
        except DataError as error:
            raise DataError(said(upload, error)) from error
        result = replace(result, scan=replace(result.scan, path=Path(upload.name)))  # the name that the person knows
        build_scan_page(result, chosen.grid.affine)
        write_summary(result)
        return describe(result) | {"files": [name for name in SERVED if (upload.folder / RESULTS / name).is_file()]}

    return run
