"""The page of a prepared cohort: every scan in three slices, worst first; what was left out and why; one self-contained file."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

import normscape
from normscape.datasets import slices
from normscape.datasets.prepared import COHORT_NAME, PreparedCohort
from normscape.report.page import template_environment
from normscape.report.plots import Plot, Shown, data_uri, render
from normscape.report.style import FONT, Theme, grid, label, legend, mark, panel
from normscape.report.tables import Grid
from normscape.report.words import number, title

PICTURES = 1000
"""At most so many scans are shown; the worst come first."""
SIDE = 200
"""Pixels of the longest side of a slice."""
MASK_COLOUR, ATLAS_COLOUR = (240, 136, 62), (90, 180, 232)
"""Outlines of the scan's brain mask and of the atlas's."""
_HISTOGRAMS = {
    "brain_volume_ml": ("Brain volume in the scan's own space.", "brain volume (ml)"),
    "atlas_dice": ("Overlap of the registered brain mask with the atlas's (Dice).", "Dice with the atlas's mask"),
    "labels_dice": ("Overlap of the brain mask with the labels' (Dice), in the scan's own space.", "Dice with the labels' mask"),
}
_BY_AGE = {"ventricle_volume_ml": "volume of the lateral ventricles (ml)", "brain_volume_ml": "brain volume (ml)"}


@dataclass(frozen=True)
class Card:
    """One scan of the page."""

    name: str
    picture: str
    facts: str
    flags: str


def build_quality_page(folder: Path) -> Path:
    """Write `quality.html` and `figures/*.png` into a prepared cohort's folder.

    Args:
        folder: a prepared cohort.

    Returns:
        Path of `quality.html`.

    Raises:
        DataError: it is no prepared cohort.
    """
    cohort = PreparedCohort.open(folder)
    described = json.loads((folder / COHORT_NAME).read_text(encoding="utf-8"))
    subjects = cohort.subjects.to_pylist()
    left_out = pq.read_table(folder / "quarantined.parquet").to_pylist()
    shown: dict[str, list[Shown]] = {}
    for plot in _plots(subjects, described["settings"]):
        shown.setdefault(plot.section, []).append(render(plot, folder / "figures"))
    order = sorted(range(len(subjects)), key=lambda place: (not subjects[place]["flags"], subjects[place]["atlas_dice"]))
    page = folder / "quality.html"
    content = {
        "name": cohort.name,
        "described": described,
        "settings": {key: value for key, value in described["settings"].items() if value not in (None, [], ())},
        "scans": len(subjects),
        "people": len({row["subject"] for row in subjects}),
        "flagged": sum(bool(row["flags"]) for row in subjects),
        "left_out": len(left_out),
        "normscape_version": normscape.__version__,
        "summary": _summary(subjects),
        "reasons": _reasons(left_out),
        "cards": [_card(cohort, subjects[place], place) for place in order[:PICTURES]],
        "hidden": max(0, len(order) - PICTURES),
        "colours": {"mask": MASK_COLOUR, "atlas": ATLAS_COLOUR},
    }
    page.write_text(template_environment().get_template("quality.html").render(content, figures=shown), encoding="utf-8")
    return page


# ---- pictures ----------------------------------------------------------------------------------------------------------


def three_slices(
    volume: NDArray[Any], mask: NDArray[np.uint8], atlas_mask: NDArray[np.uint8], *, side: int = SIDE
) -> NDArray[np.uint8]:
    """Axial, coronal and sagittal slices through the middle of the atlas's brain, side by side: uint8 (side, 3 * side, 3).

    The subject's right is at the left of the picture, front and top are up; outlines of both masks are drawn.

    Args:
        volume: (Z, Y, X), RAS, 0 outside the mask.
        mask: the scan's brain, on the same grid.
        atlas_mask: the atlas's.
        side: pixels of a slice.
    """
    centre = [round(float(c)) for c in ndimage.center_of_mass(atlas_mask)]
    box = slices.brain_box(atlas_mask)
    inside = volume[mask > 0].astype(np.float32)
    low, high = np.percentile(inside, [0.5, 99.5]) if inside.size else (0.0, 1.0)
    parts = []
    for axis in (slices.AXIAL, slices.CORONAL, slices.SAGITTAL):
        planes = [slices.panel(array, centre, box, (axis,)) for array in (volume, mask, atlas_mask)]
        parts.append(_outlined(planes, float(low), float(high), side))
    return np.concatenate(parts, axis=1)


def _outlined(planes: list[NDArray[Any]], low: float, high: float, side: int) -> NDArray[np.uint8]:
    """One square slice in grey, enlarged to `side` pixels, with both outlines."""
    values = np.clip((planes[0].astype(np.float32) - low) / max(high - low, 1e-6), 0, 1) * (planes[1] > 0)
    grey = Image.fromarray((values * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    canvas = np.repeat(np.asarray(grey)[..., None], 3, axis=-1)
    for plane, colour in ((planes[2], ATLAS_COLOUR), (planes[1], MASK_COLOUR)):
        mask = Image.fromarray((plane > 0).astype(np.uint8) * 255).resize((side, side), Image.Resampling.BILINEAR)
        large = np.asarray(mask) >= 128
        canvas[large & ~ndimage.binary_erosion(large)] = colour
    return canvas


def _card(cohort: PreparedCohort, row: dict[str, Any], place: int) -> Card:
    pixels = three_slices(np.asarray(cohort.volumes[place]), np.asarray(cohort.masks[place]), cohort.atlas_mask)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    facts = [
        f"{row['age_years']:.0f} years" if row["age_years"] is not None else "age unknown",
        *(part for part in (row["sex"], row["site"]) if part),
        f"brain {row['brain_volume_ml']:.0f} ml",
        f"Dice {row['atlas_dice']:.3f}",
    ]
    if row.get("labels_dice") is not None:
        facts.append(f"Dice with labels {row['labels_dice']:.3f}")
    name = f"{row['subject']} {row['session']}".strip()
    return Card(name, data_uri(buffer.getvalue(), "image/jpeg"), ", ".join(facts), row["flags"])


# ---- tables and figures --------------------------------------------------------------------------------------------------


def _summary(subjects: list[dict[str, Any]]) -> Grid:
    """Median and range of what was measured."""
    rows = []
    for name in ("age_years", *(n for n in subjects[0] if n.endswith(("_ml", "_dice")) or n.startswith("stretch_"))):
        values = np.array([row[name] for row in subjects if row[name] is not None], dtype=float)
        if values.size:
            digits = 3 if values.max() < 10 else 0
            cells = (np.median(values), values.min(), values.max())
            rows.append([title(name.replace("_", " ")), *(number(float(v), digits) for v in cells), str(values.size)])
    return Grid(["", "median", "least", "most", "scans"], rows, "What was measured")


def _reasons(left_out: list[dict[str, Any]]) -> Grid:
    rows = [[row["subject"] or "–", row["step"], row["reason"], Path(row["scan"]).name] for row in left_out]
    return Grid(["subject", "step", "reason", "file"], rows, "Scans that were left out")


def _plots(subjects: list[dict[str, Any]], settings: dict[str, Any]) -> list[Plot]:
    limits = {"atlas_dice": settings["flag_overlap"]}
    plots = [
        Plot(name.replace("_", "-"), "measured", partial(histogram, subjects, name, axis, limits.get(name)), caption, caption, "")
        for name, (caption, axis) in _HISTOGRAMS.items()
    ]
    for name, axis in _BY_AGE.items():
        caption = f"{title(axis)} against age. r is the correlation of age with its logarithm."
        plots.append(Plot(f"{name.replace('_', '-')}-by-age", "age", partial(by_age, subjects, name, axis), caption, caption, ""))
    return plots


def histogram(subjects: list[dict[str, Any]], name: str, axis_label: str, limit: float | None, theme: Theme) -> Figure | None:
    """How often which value was measured; a dashed line where a scan is flagged."""
    values = np.array([row[name] for row in subjects if row.get(name) is not None], dtype=float)
    if not values.size:
        return None
    figure, (axis,) = panel(theme, height=2.6)
    axis.hist(values, bins=min(40, max(8, values.size // 4)), color=theme.series[0], alpha=0.75)
    if limit is not None and limit > values.min() - 0.5 * np.ptp(values) - 0.02:
        mark(axis, theme, limit, "flagged", vertical=True)
    grid(axis, theme)
    label(axis, theme, axis_label, "scans")
    return figure


def by_age(subjects: list[dict[str, Any]], name: str, axis_label: str, theme: Theme) -> Figure | None:
    """A measurement against age, one point a scan, coloured by site, on a logarithmic axis where it spans a decade."""
    rows = [row for row in subjects if row.get(name) is not None and row["age_years"] is not None and row[name] > 0]
    if len(rows) < 3:
        return None
    figure, (axis,) = panel(theme, height=3.1)
    age, value = (np.array([row[column] for row in rows], dtype=float) for column in ("age_years", name))
    sites = sorted({row["site"] for row in rows})
    for site, colour in zip(sites, theme.series * (1 + len(sites) // len(theme.series)), strict=False):
        here = np.array([row["site"] == site for row in rows])
        axis.scatter(age[here], value[here], s=12, color=colour, alpha=0.8, linewidths=0, label=site or "unknown")
    if value.max() > 8 * value.min():
        axis.set_yscale("log")
    if np.ptp(age) > 0 and np.ptp(value) > 0:
        r = float(np.corrcoef(age, np.log(value))[0, 1])
        axis.set_title(f"r = {r:.2f}", color=theme.ink, fontsize=FONT, loc="right")
    if len(sites) > 1:
        legend(axis, theme)
    grid(axis, theme)
    label(axis, theme, "age (years)", axis_label)
    return figure
