"""Image grids: figures 6 and 7 of the thesis, single images and strips for the page.

Volumes show their middle axial slice, turned as in `normscape.datasets.slices`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from normscape.report.source import Source, rows
from normscape.report.style import FONT, Theme, panel
from normscape.report.words import with_unit

GROUPS = (("train", 0), ("train", 1), ("test", 0), ("test", 1))
"""Rows of figure 7: (split, label)."""
LABELS = ("normal", "anomalous")


def flat(image: np.ndarray) -> np.ndarray:
    """An image `(C, *S)` uint8 as `(H, W, 3)`; of a volume the middle slice, of one channel grey."""
    plane = image[:, image.shape[1] // 2, ::-1, ::-1] if image.ndim == 4 else image
    shown = np.moveaxis(np.asarray(plane), 0, -1)
    return np.repeat(shown[..., :1], 3, axis=-1) if shown.shape[-1] != 3 else shown


def mosaic(images: Sequence[Sequence[np.ndarray | None]], gap: int = 1) -> np.ndarray:
    """Images `(C, *S)` in rows and columns as `(H', W', 4)`, transparent between them and where there is None."""
    height, width = next(flat(image).shape[:2] for line in images for image in line if image is not None)
    columns = max(len(line) for line in images)
    sheet = np.zeros((len(images) * (height + gap) - gap, columns * (width + gap) - gap, 4), dtype=np.uint8)
    for r, line in enumerate(images):
        for c, image in enumerate(line):
            if image is not None:
                cell = sheet[r * (height + gap) : r * (height + gap) + height, c * (width + gap) : c * (width + gap) + width]
                cell[..., :3], cell[..., 3] = flat(image), 255
    return sheet


def image_png(pixels: np.ndarray) -> bytes:
    """`(H, W, 3 | 4)` uint8 as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def strip(images: np.ndarray) -> bytes:
    """Images `(V, C, *S)` side by side, for a slider that shows one at a time."""
    return image_png(np.concatenate([flat(image) for image in images], axis=1))


def spread(count: int, most: int) -> list[int]:
    """At most `most` evenly spaced indices of `count`, first and last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def framed(sheet: np.ndarray, theme: Theme, columns: Sequence[tuple[float, str]], lines: Sequence[tuple[float, str]]) -> Figure:
    """A sheet of images with names above its columns and beside its rows; places are pixels of the sheet."""
    margin = 0.75 if any(text for _, text in lines) else 0.1
    width = 5.6
    figure, (axis,) = panel(theme, width=width, height=(width - margin) * sheet.shape[0] / sheet.shape[1] + 0.3)
    axis.imshow(sheet, interpolation="nearest")
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.xaxis.tick_top()
    axis.set_xticks([place for place, _ in columns], [text for _, text in columns], color=theme.ink, fontsize=FONT - 0.5)
    axis.set_yticks([place for place, _ in lines], [text for _, text in lines], color=theme.ink, fontsize=FONT - 0.5)
    axis.tick_params(length=0)
    return figure


def sweep(source: Source, theme: Theme) -> Figure | None:
    """Figure 6: one identity a row, one asked value a column."""
    images, about = source.array("controllers", "sweep.npy"), source.json("controllers", "sweep.json")
    if images is None or not about:
        return None
    shown = spread(images.shape[1], 10)
    lines = spread(images.shape[0], 8)
    sheet = mosaic([[images[r, c] for c in shown] for r in lines])
    pitch = (sheet.shape[1] + 1) / len(shown)
    columns = [((i + 0.5) * pitch - 1, value_text(about["values"][c], about)) for i, c in enumerate(shown)]
    return framed(sheet, theme, columns, [])


def value_text(value: float | Sequence[float], about: dict[str, object]) -> str:
    """An asked value with its unit; a vector as its components."""
    parts = [value] if isinstance(value, int | float) else list(value)
    digits = 0 if all(abs(p - round(p)) < 0.05 for p in parts) else 1
    return ", ".join(with_unit(float(p), str(about.get("unit", "")), digits) for p in parts)


def projections(source: Source, theme: Theme) -> Figure | None:
    """Figure 7: image, reconstruction and controlled reconstruction, for normal and anomalous images of both splits."""
    table = source.table("project", "projections.parquet", "split", "label")
    arrays = [source.array("project", f"{name}.npy") for name in ("inputs", "reconstructions", "rotated")]
    about = source.json("project", "rotated.json")
    inputs, rebuilt, controlled = arrays
    if table is None or inputs is None or rebuilt is None or len(inputs) != rows(table):
        return None
    chosen = [int(r) for r in about.get("rows", [])] if controlled is not None else []
    sets: list[tuple[str, list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]]] = []
    for split, kind in GROUPS:
        mine = [(i, r) for i, r in enumerate(chosen) if table["split"][r] == split and table["label"][r] == kind][:3]
        if controlled is not None and mine:
            sets.append((f"{split},\n{LABELS[kind]}", [(inputs[r], rebuilt[r], controlled[i]) for i, r in mine]))
        else:
            others = np.flatnonzero((table["split"] == split) & (table["label"] == kind))[:3]
            sets += [(f"{split},\n{LABELS[kind]}", [(inputs[r], rebuilt[r], None) for r in others])] if len(others) else []
    if not sets:
        return None
    examples = max(len(group) for _, group in sets)
    lines = [[image for triple in group for image in triple] for _, group in sets]
    sheet, centres = _in_groups(mosaic(lines), every=3, groups=examples)
    controlled_name = "at " + value_text(about["value"], {"unit": _unit(source, about)}) if "value" in about else ""
    names = ["image", "rebuilt", controlled_name]
    columns = [(place, names[i % 3]) for i, place in enumerate(centres)]
    height = sheet.shape[0] / len(sets)
    return framed(sheet, theme, columns, [((i + 0.5) * height, name) for i, (name, _) in enumerate(sets)])


def _unit(source: Source, about: dict[str, object]) -> str:
    return next((a.unit for a in source.config.attributes if a.name == about.get("attribute")), "")


def _in_groups(sheet: np.ndarray, *, every: int, groups: int) -> tuple[np.ndarray, list[float]]:
    """The sheet with wider gaps between groups of `every` columns, and where its columns' centres come to lie."""
    pitch = (sheet.shape[1] + 1) // (every * groups)
    blank = np.zeros((sheet.shape[0], max(2, pitch // 5), 4), dtype=np.uint8)
    parts: list[np.ndarray] = []
    centres: list[float] = []
    for group in range(groups):
        left = group * (every * pitch + blank.shape[1])
        centres += [left + (i + 0.5) * pitch - 1 for i in range(every)]
        parts += [sheet[:, group * every * pitch : (group + 1) * every * pitch], blank]
    return np.concatenate(parts[:-1], axis=1), centres
