"""Projected test images as points in the style space: the page shows an image, its reconstruction and its score for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata

from normscape.config import Config
from normscape.report import detection, pictures, plots
from normscape.report.source import Source, rows
from normscape.report.words import detector_name, number, with_unit
from normscape.scoring.detectors import MAIN_DETECTORS, main_detector

PREFIX = "coordinates/"
MOST_POINTS = 150
SPRITE_COLUMNS = 15
PICTURE_SIDE = 64
"""Largest side of a picture in the sprite, in pixels."""
ROOM = 0.04
"""Share of the plot's side that stays free at each end."""
BLOT_FACTS = {
    "blot_contrast": ("blot contrast", ""),
    "blot_radius_px": ("blot radius", "px"),
    "blot_radius_mm": ("blot radius", "mm"),
}
"""Column -> (name, unit) of what is told about a blot."""


@dataclass(frozen=True)
class Plane:
    """Two coordinates of a sub-space.

    Attributes:
        name: what a reader chooses.
        across: name of the horizontal axis, and the values of the outermost points, in standard deviations of generated styles.
        up: likewise, of the vertical axis.
        places: (points, 2) in [0, 1], from the left and from the bottom.
    """

    name: str
    across: str
    up: str
    places: list[tuple[float, float]]


def image_facts(config: Config, table: Mapping[str, np.ndarray], row: int) -> str:
    """What is known of a projected image: its subject, its conditions, its blot."""
    facts = [str(table["subject"][row])] if "subject" in table else []
    known = {a.column: (a.name, a.unit) for a in config.value_attributes if a.column} | BLOT_FACTS
    for column, (name, unit) in known.items():
        values = table.get(column)
        if values is not None and np.issubdtype(values.dtype, np.number) and np.isfinite(values[row]):
            facts.append(f"{name} {with_unit(float(values[row]), unit, 2 if not unit else 1)}")
    return ", ".join(facts)


def content(source: Source) -> dict[str, Any] | None:
    """Points, planes and the sprite; None where the run left no coordinates or images."""
    path = source.path("project", "projections.parquet")
    table = source.table("project", "projections.parquet", "split", "label")
    inputs, rebuilt = source.array("project", "inputs.npy"), source.array("project", "reconstructions.npy")
    if path is None or table is None or inputs is None or rebuilt is None or len(inputs) != rows(table):
        return None
    chosen = _chosen(table)
    coordinates = _coordinates(source)
    planes = [plane for name, values in coordinates.items() for plane in _planes(name, values, table, chosen)]
    if not len(chosen) or not planes:
        return None
    scored = detection.scored_projections(source)
    detectors = detection.detectors(scored) if scored is not None else []
    detector = main_detector(detectors) if set(detectors) & set(MAIN_DETECTORS) else detectors[0] if detectors else ""
    points = []
    for row in chosen:
        score = number(float(scored[f"{detector}_score"][row])) if scored is not None and detector else ""
        kind = pictures.LABELS[int(table["label"][row])]
        points.append({"kind": kind, "score": score, "facts": image_facts(source.config, table, int(row))})
    lines = -(-len(chosen) // SPRITE_COLUMNS)
    return {
        "points": points,
        "planes": planes,
        "read": {"planes": [asdict(plane) for plane in planes], "points": points},
        "sprite": plots.data_uri(_sprite(inputs, rebuilt, chosen)),
        "columns": min(SPRITE_COLUMNS, len(chosen)),
        "lines": 2 * lines,
        "detector": detector_name(detector) if detector else "",
    }


def _chosen(table: Mapping[str, np.ndarray]) -> NDArray[np.int64]:
    """Test rows that are shown: as many of both labels as there is room for, evenly over the table."""
    picked: list[int] = []
    for kind in (0, 1):
        mine = np.flatnonzero((table["split"] == "test") & (table["label"] == kind))
        picked += [int(mine[i]) for i in pictures.spread(len(mine), MOST_POINTS // 2)] if len(mine) else []
    return np.array(sorted(picked), dtype=np.int64)


def _coordinates(source: Source) -> dict[str, NDArray[np.float64]]:
    """Sub-space -> whitened coordinates (N, C) of all projections, resolutions one after the other."""
    path = source.path("project", "projections.parquet")
    if path is None:
        return {}
    names = [name for name in pq.read_schema(path).names if name.startswith(PREFIX)]
    found = {}
    for name, column in zip(names, pq.read_table(path, columns=names).columns, strict=True):
        kind = column.type
        nested = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
        values = np.array(column.to_pylist(), dtype=np.float64) if nested and not column.null_count else np.empty(0)
        if values.ndim == 2 and values.shape[1] >= 2:
            found[name.removeprefix(PREFIX)] = values
    return found


def _planes(name: str, values: NDArray[np.float64], table: Mapping[str, np.ndarray], chosen: NDArray[np.int64]) -> list[Plane]:
    """The first two components, and the two that tell normal from anomalous best on training images where they differ."""
    lengths = [column.rsplit("/", 1)[-1] for column in table if column.startswith(f"length/{name}/")]
    resolutions = lengths if lengths and values.shape[1] % len(lengths) == 0 else [""]
    each = values.shape[1] // len(resolutions)

    def axis(j: int, low: float, high: float) -> str:
        resolution = resolutions[j // each]
        name = f"component {j % each + 1}" + (f" at resolution {resolution}" if resolution else "")
        return f"{name} ({number(low, 1)} to {number(high, 1)})"

    pairs = [(f"{name}: first two components", (0, 1))]
    train = table["split"] == "train"
    if len(np.unique(table["label"][train])) == 2:
        apart = np.abs(_areas(values[train], table["label"][train]) - 0.5)
        first, second = (int(j) for j in np.argsort(-apart, kind="stable")[:2])
        if {first, second} != {0, 1}:
            pairs.append((f"{name}: components that tell most on training images", (first, second)))
    planes = []
    for title, pair in pairs:
        shown = values[chosen][:, pair]
        if not len(shown) or not np.isfinite(shown).all():
            continue
        low, high = shown.min(0), shown.max(0)
        inside = (shown - low) / np.where(high > low, high - low, 1.0) * (1 - 2 * ROOM) + ROOM
        places = [(round(float(x), 4), round(float(y), 4)) for x, y in inside]
        across, up = (axis(j, float(low[i]), float(high[i])) for i, j in enumerate(pair))
        planes.append(Plane(title, across, up, places))
    return planes


def _areas(values: NDArray[np.float64], label: np.ndarray) -> NDArray[np.float64]:
    """Area under the ROC curve of every column (C,) by itself."""
    ranks = rankdata(values, axis=0)
    positive = int((label == 1).sum())
    negative = len(label) - positive
    areas: NDArray[np.float64] = (ranks[label == 1].sum(0) - positive * (positive + 1) / 2) / (positive * negative)
    return areas


def _sprite(inputs: np.ndarray, rebuilt: np.ndarray, chosen: NDArray[np.int64]) -> bytes:
    """All images, and below all of them all reconstructions, on a grid, as PNG."""
    columns = min(SPRITE_COLUMNS, len(chosen))
    lines = -(-len(chosen) // SPRITE_COLUMNS)
    halves = []
    for images in (inputs, rebuilt):
        small = [_small(pictures.flat(images[row])) for row in chosen]
        side_y, side_x = small[0].shape[:2]
        half = np.zeros((lines * side_y, columns * side_x, 3), dtype=np.uint8)
        for i, picture in enumerate(small):
            y, x = side_y * (i // columns), side_x * (i % columns)
            half[y : y + side_y, x : x + side_x] = picture
        halves.append(half)
    return pictures.image_png(np.concatenate(halves))


def _small(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) with sides of at most `PICTURE_SIDE`."""
    height, width = picture.shape[:2]
    share = PICTURE_SIDE / max(height, width)
    if share >= 1:
        return picture
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.LANCZOS))
