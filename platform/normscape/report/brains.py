"""The page's part on whole brains: figures 12 and 13, ventricles against age, anomaly maps and their tables."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from normscape.report.brain_scenes import brain_viewer, case_name, case_peak, target
from normscape.report.pictures import framed
from normscape.report.plots import Plot
from normscape.report.source import Source, rows, where
from normscape.report.style import Theme, grid, label, legend, panel
from normscape.report.tables import Grid, Headline
from normscape.report.viewer import Viewer
from normscape.report.words import duration, number, percent
from normscape.scoring.maps import EXCESS_SHOWN

STAGE = "brains"
GAP = 3
"""Pixels between pictures."""
REGIONS_SHOWN = 12


def plots(source: Source) -> Iterator[Plot]:
    """Figures of the section; none where the run has no such stage."""
    if STAGE not in source.folders:
        return
    yield Plot(
        "figure-12-generated-brains",
        STAGE,
        partial(generated, source),
        "Figure 12. Generated brains: one identity a row, one asked age a column. All patches of a brain share their identity "
        "and other sub-vectors; age and position come from their controllers.",
        "Axial and coronal slices of generated brains of a few identities at several ages.",
        "brains/generated.npy",
        wide=True,
    )
    yield Plot(
        "ventricles",
        STAGE,
        partial(ventricles, source),
        "Volume of the lateral ventricles: fluid in and near the atlas's ventricles, in the atlas's space. A line is one "
        "generated identity, a dot one test scan, measured alike.",
        "Volume of the lateral ventricles against age, of generated identities and of test scans.",
        "brains/ventricles.parquet",
    )
    yield Plot(
        "figure-13-reconstruction",
        STAGE,
        partial(reconstruction, source),
        "Figure 13. A test brain, its projection blended from overlapping patches, and their difference. The patches share the "
        "known age.",
        "Three slices of a test brain, of its reconstruction, and of their difference.",
        "brains/maps.npy",
        wide=True,
    )
    yield Plot(
        "anomaly-maps",
        STAGE,
        partial(maps, source),
        "Anomaly maps of test scans, as they are and with a drawn blot, in slices through the blot's place. Overlay: the anomaly "
        "map, from its threshold upwards, which weighs the mean score of the patches at a voxel by what is at the right: by how "
        "many standard deviations the voxel leaves what is usual for this age at its place. The blot is outlined.",
        "Slices of test scans, their anomaly maps and what exceeds the usual.",
        "brains/maps.npy",
        wide=True,
    )
    if source.config.brains.cases is not None:
        yield Plot(
            "cases",
            STAGE,
            partial(cases, source),
            "Cases from outside the cohort, in their own space: slices through the lesion, or through the map's peak where "
            "none is marked. Middle: the anomaly map, from its threshold upwards; right: by how many standard deviations a "
            "voxel leaves what is usual for this age at its place. The lesion is outlined.",
            "Slices of scans with lesions and of their anomaly maps.",
            "brains/cases.npy",
            wide=True,
        )


def content(source: Source) -> dict[str, Any] | None:
    """What the template shows beside the figures; None where the run has no such stage."""
    if STAGE not in source.folders:
        return None
    view = brain_viewer(source)
    return {
        "viewer": view,
        "maps": map_table(source),
        "regions": region_table(source, view),
        "cases": case_table(source, view),
        "stride": None if source.config.whole_scans else source.config.brains.stride,
    }


def headlines(source: Source) -> list[Headline]:
    """How much ventricles widen with the asked age."""
    metrics = source.json(STAGE, "manifest.json").get("metrics", {})
    growth = metrics.get("ventricle_growth_ml")
    if growth is None:
        return []
    ages = source.config.brains.ages
    low, high = (metrics[f"ventricle_growth_ml_{end}"] for end in ("low", "high"))
    name = f"Ventricles of generated brains, {max(ages):g} against {min(ages):g} years"
    return [Headline(name, f"{growth:+.1f} ml", f"{low:+.1f} to {high:+.1f} ml", "", None)]


# ---- figures ---------------------------------------------------------------------------------------------------------------


def generated(source: Source, theme: Theme) -> Figure | None:
    """Figure 12: identities by ages."""
    pictures = source.array(STAGE, "generated.npy")
    if pictures is None or not len(pictures):
        return None
    sheet, columns, lines = _sheet([[grey_picture(image[0]) for image in line] for line in pictures])
    ages = [f"{age:g} years" for age in source.config.brains.ages]
    return framed(sheet, theme, list(zip(columns, ages, strict=True)), [(y, f"identity {i}") for i, y in enumerate(lines, 1)])


def ventricles(source: Source, theme: Theme) -> Figure | None:
    """Volume against age."""
    table = source.table(STAGE, "ventricles.parquet", "kind", "identity", "age_years", "volume_ml")
    if table is None:
        return None
    figure, (axis,) = panel(theme, height=3.3)
    scans, made = (where(table, kind=kind) for kind in ("scan", "generated"))
    if rows(scans):
        axis.scatter(
            scans["age_years"], scans["volume_ml"], s=14, color=theme.series[0], alpha=0.75, linewidths=0, label="test scan"
        )
    for i, identity in enumerate(dict.fromkeys(made["identity"].tolist() if rows(made) else [])):
        part = where(made, identity=identity)
        axis.plot(
            part["age_years"], part["volume_ml"], color=theme.series[1], linewidth=1.2, marker="o", markersize=3,
            label="generated identity" if i == 0 else None,
        )  # fmt: skip
    axis.set_ylim(bottom=0)
    grid(axis, theme)
    legend(axis, theme, columns=2, above=True)
    label(axis, theme, "age (years)", "lateral ventricles (ml)")
    return figure


def reconstruction(source: Source, theme: Theme) -> Figure | None:
    """Figure 13: the first test brain."""
    pictures = source.array(STAGE, "maps.npy")
    if pictures is None or not len(pictures):
        return None
    image, rebuilt = (pictures[0, i, 0].astype(int) for i in (0, 1))
    both = (image > 0) & (rebuilt > 0)
    difference = np.where(both, np.minimum(255, 2 * np.abs(image - rebuilt)), 0)
    parts = [grey_picture(part.astype(np.uint8)) for part in (image, rebuilt, difference)]
    sheet, _, lines = _sheet([[part] for part in parts])
    return framed(sheet, theme, [], list(zip(lines, ("scan", "rebuilt", "difference"), strict=True)))


def maps(source: Source, theme: Theme) -> Figure | None:
    """Anomaly map and excess, one map a row."""
    pictures, table = source.array(STAGE, "maps.npy"), source.table(STAGE, "maps.parquet", "name", "blot", "age_years")
    about = source.json(STAGE, "slices.json")
    if pictures is None or table is None or len(pictures) != rows(table):
        return None
    threshold = float(about.get("threshold", 0.5))
    lines = []
    for scan, _, anomaly, excess, blot in (line[:, 0] for line in pictures):
        values = np.where(anomaly > 0, (anomaly.astype(np.float32) - 1) / 254, 0)
        shown = overlay(scan, values, threshold)
        heat = coloured((excess.astype(np.float32) - 1).clip(0) / 254, excess > 0)
        lines.append([outlined(picture, blot > 0) for picture in (grey_picture(scan), shown, heat)])
    sheet, columns, places = _sheet(lines)
    names = [
        f"{age:.0f} years,\n{'with blot' if blot else 'as it is'}"
        for age, blot in zip(table["age_years"], table["blot"], strict=True)
    ]
    heads = ("scan", f"anomaly map above {threshold:.2f}", f"excess, 0 to {EXCESS_SHOWN:g} deviations")
    return framed(sheet, theme, list(zip(columns, heads, strict=True)), list(zip(places, names, strict=True)))


def cases(source: Source, theme: Theme) -> Figure | None:
    """Scan, anomaly map and excess, one case a row."""
    pictures, table = source.array(STAGE, "cases.npy"), source.table(STAGE, "cases.parquet", "name", "reason")
    threshold = float(source.json(STAGE, "slices.json").get("threshold", 0.5))
    if pictures is None or table is None or not len(pictures):
        return None
    lines = []
    for scan, anomaly, excess, lesion in (line[:, 0] for line in pictures):
        values = np.where(anomaly > 0, (anomaly.astype(np.float32) - 1) / 254, 0)
        heat = coloured((excess.astype(np.float32) - 1).clip(0) / 254, excess > 0)
        lines.append([outlined(picture, lesion > 0) for picture in (grey_picture(scan), overlay(scan, values, threshold), heat)])
    sheet, columns, places = _sheet(lines)
    names = [str(name) for name, reason in zip(table["name"], table["reason"], strict=True) if not reason]
    heads = ("scan", f"anomaly map above {threshold:.2f}", f"excess, 0 to {EXCESS_SHOWN:g} deviations")
    return framed(sheet, theme, list(zip(columns, heads, strict=True)), list(zip(places, names, strict=True)))


def overlay(
    grey: NDArray[np.uint8], score: NDArray[np.floating], threshold: float, *, opacity: float = 0.65
) -> NDArray[np.uint8]:
    """A slice with its anomaly map over it, from the threshold upwards: uint8 (H, W, 3).

    Args:
        grey: (H, W).
        score: (H, W), in [0, 1].
        threshold: lower scores are not drawn.
        opacity: of the map.
    """
    base = grey_picture(grey).astype(np.float32)
    share = ((score - threshold) / max(1 - threshold, 1e-6)).clip(0, 1)
    colour = 255 * colormaps["autumn"](share)[..., :3]
    alpha = np.where(score > threshold, opacity, 0.0)[..., None]
    return (base * (1 - alpha) + colour * alpha).round().astype(np.uint8)


def outlined(picture: NDArray[np.uint8], inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) with the border of an area drawn on it."""
    padded = np.pad(inside, 1)
    near = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    result = picture.copy()
    result[inside & ~near] = (90, 200, 250)
    return result


def grey_picture(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A grey slice (H, W) as a picture (H, W, 3)."""
    return np.repeat(np.asarray(plane)[..., None], 3, axis=-1)


def coloured(share: NDArray[np.floating], inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Shares from 0 to 1 (H, W) as colours from black to yellow, black outside: uint8 (H, W, 3)."""
    colour = (255 * colormaps["inferno"](share)[..., :3]).astype(np.uint8)
    return np.where(inside[..., None], colour, 0).astype(np.uint8)


def _sheet(lines: list[list[NDArray[np.uint8]]]) -> tuple[NDArray[np.uint8], list[float], list[float]]:
    """Pictures (H, W, 3) of one size in rows and columns, and where the middles of columns and rows lie."""
    height, width = lines[0][0].shape[:2]
    columns = max(map(len, lines))
    sheet = np.zeros((len(lines) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 4), np.uint8)
    for r, line in enumerate(lines):
        for c, picture in enumerate(line):
            cell = sheet[r * (height + GAP) : r * (height + GAP) + height, c * (width + GAP) : c * (width + GAP) + width]
            cell[..., :3], cell[..., 3] = picture, 255
    middles = ([i * (side + GAP) + side / 2 for i in range(n)] for side, n in ((width, columns), (height, len(lines))))
    across, down = middles
    return sheet, across, down


# ---- tables ----------------------------------------------------------------------------------------------------------------


def map_table(source: Source) -> Grid | None:
    """One row a map."""
    table = source.table(STAGE, "maps.parquet", "name", "blot", "age_years", "peak_score", "anomaly_auroc", "residual_auroc")
    if table is None:
        return None
    lines, areas_shown = [], _areas(table)
    for i in range(rows(table)):
        blot = bool(table["blot"][i])
        what = f"{number(table['blot_radius_mm'][i], 1)} mm, contrast {number(table['blot_contrast'][i], 2)}" if blot else "none"
        areas = [number(table[f"{name}_auroc"][i]) for name in areas_shown]
        hit = "" if not blot else "yes" if table["peak_in_blot"][i] else "no"
        cells = [str(table["name"][i]), f"{table['subject'][i]}, {table['age_years'][i]:.0f} years", what]
        cells += [number(table["peak_score"][i]), hit, *areas, str(table["patches"][i]), percent(table["covered"][i])]
        lines.append([*cells, "" if blot else duration(float(table["seconds"][i]))])
    head = ["Map", "Test scan", "Blot", "Peak", "Peak in blot", *_heads(areas_shown), "Patches"]
    note = "Areas under the ROC curve are over the voxels of the brain, blot against the rest: examples, not a test. "
    note += "Times are for both maps of a scan."
    return Grid([*head, "Covered", "Time"], lines, "Anomaly maps", note)


def _areas(table: dict[str, NDArray[Any]]) -> list[str]:
    """Maps whose areas are shown; runs of before, and those without an encoder, have no gradient."""
    gradient = table.get("gradient_auroc")
    known = gradient is not None and bool(np.isfinite(gradient.astype(np.float64)).any())
    return ["anomaly", "score", "residual", "excess"] + (["gradient"] if known else [])


def _heads(areas: list[str]) -> list[str]:
    return ["AUROC anomaly map", *areas[1:]]


def case_table(source: Source, view: Viewer | None = None) -> Grid | None:
    """One row a case from outside the cohort; a row of a case in the viewer points to its highest peak."""
    table = source.table(STAGE, "cases.parquet", "name", "age_years", "peak_score", "anomaly_auroc", "residual_auroc", "reason")
    if table is None:
        return None
    lines, areas_shown = [], _areas(table)
    for i in range(rows(table)):
        if table["reason"][i]:
            lines.append([str(table["name"][i]), *[""] * (5 + len(areas_shown)), f"not mapped: {table['reason'][i]}"])
            continue
        estimated = bool(table["age_estimated"][i])
        marked = np.isfinite(table["lesion_ml"][i])
        age = f"{table['age_years'][i]:.0f} years" + (", read from the scan" if estimated else "")
        cells = [str(table["name"][i]), age, f"{number(table['lesion_ml'][i], 1)} ml" if marked else "not marked"]
        cells += [number(table["peak_score"][i]), ("yes" if table["peak_in_lesion"][i] else "no") if marked else ""]
        cells += [number(table[f"{name}_auroc"][i]) if marked else "" for name in areas_shown]
        lines.append([*cells, str(int(table["regions"][i])), ""])
    head = ["Case", "Age", "Lesion", "Peak", "Peak in lesion", *_heads(areas_shown), "Regions", ""]
    note = "Areas under the ROC curve are over the voxels of the brain, lesion against the rest: single cases, not a test."
    peaks = [(str(name), case_peak(source, str(name))) for name in table["name"]]
    targets = [target(view, case_name(name), peak, f"Case {name}, peak") if peak else None for name, peak in peaks]
    return Grid(head, lines, "Cases from outside the cohort", note, targets=targets)


def region_table(source: Source, view: Viewer | None = None) -> Grid | None:
    """The regions with the highest peaks of all maps."""
    table = source.table(STAGE, "regions.parquet", "name", "peak_score")
    if table is None:
        return None
    return region_grid(table, "Most abnormal regions", first="name", spaces=("atlas",), view=view)


def region_grid(
    table: dict[str, NDArray[Any]],
    caption: str,
    *,
    first: str = "",
    spaces: tuple[str, ...] = ("atlas", "scan"),
    view: Viewer | None = None,
) -> Grid:
    """A table of regions: `REGION_SCHEMA` as columns, and maybe a first one.

    Args:
        table: column to values.
        caption: of the table.
        first: column that names the row, and the scene of the viewer that it belongs to; else rows are numbered.
        spaces: whose coordinates are shown.
        view: a viewer in the space of the atlas whose crosshair the rows move; its first scene where rows are numbered.
    """
    order = np.argsort(-table["peak_score"], kind="stable")[:REGIONS_SHOWN]
    lines, targets = [], []
    for place, i in enumerate(order, start=1):
        name = f"{place}" if not first else str(table[first][i])
        scene = str(table[first][i]) if first else view.scenes[0].name if view is not None else ""
        x, y, z = (float(table[f"atlas_peak_{axis}_mm"][i]) for axis in "xyz")
        targets.append(target(view, scene, (x, y, z), f"Region {place}, peak {number(table['peak_score'][i])}"))
        cells = [name, number(table["peak_score"][i]), number(table["mean_score"][i]), f"{table['volume_ml'][i]:.2f} ml"]
        for space in spaces:
            cells.append(", ".join(number(table[f"{space}_peak_{axis}_mm"][i], 0) for axis in "xyz"))
            cells.append(", ".join(number(table[f"{space}_{axis}_mm"][i], 0) for axis in "xyz"))
        lines.append(cells)
    head = ["Map" if first else "", "Peak", "Mean", "Volume"]
    for space in spaces:
        head += [f"Peak, {space} (mm)", f"Centre, {space} (mm)"]
    note = "Connected voxels above the threshold. Coordinates are x, y, z in RAS millimetres: right, front, top."
    more = len(table["peak_score"]) - len(order)
    if any(targets):
        note += " A row moves the crosshair of the view to its peak."
    return Grid(head, lines, caption, note + (f" {more} more are in the file." if more > 0 else ""), targets=targets)
