"""The page of one scored scan: slices with the anomaly map over them, and the table of its most abnormal regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import normscape
from normscape.datasets import slices
from normscape.report.brain_scenes import VIEWER
from normscape.report.brains import coloured, grey_picture, overlay, region_grid
from normscape.report.page import template_environment
from normscape.report.pictures import image_png
from normscape.report.plots import data_uri
from normscape.report.viewer import Scene, Viewer, anomaly_layer, reconstruction_layer, scan_layer
from normscape.report.words import number
from normscape.scoring.maps import EXCESS_SHOWN
from normscape.stages.scan import ScoredScan

PAGE_NAME, OVERLAY_NAME = "index.html", "overlay.png"
SCALE = 3
"""Pixels of a voxel, along each side."""
ROWS = 4
"""Places that are shown beside the peak: axial slices from bottom to top."""


def build_scan_page(result: ScoredScan, affine: NDArray[np.float64]) -> Path:
    """Write `overlay.png` and `index.html` beside the maps.

    Args:
        result: a scored scan.
        affine: (4, 4), index (z, y, x, 1) to RAS millimetres of the atlas.

    Returns:
        Path of the page.
    """
    maps, mask = result.maps, result.mask
    anomaly = maps.anomaly
    peak = [int(i) for i in np.unravel_index(int(anomaly.argmax()), anomaly.shape)]
    top = _picture(result, [slices.panel(volume, peak, slices.brain_box(mask)) for volume in _volumes(result)])
    Image.fromarray(top).save(result.folder / OVERLAY_NAME)
    box = slices.brain_box(mask)
    heights = np.linspace(box[0].start, box[0].stop - 1, 2 * ROWS + 2)[1:-1].round().astype(int)
    strips = [
        np.concatenate([slices.panel(volume, [int(z), *peak[1:]], box, (slices.AXIAL,)) for z in heights], axis=1)
        for volume in _volumes(result)
    ]
    place = affine @ [*peak, 1]
    table = {name: result.regions[name].to_numpy() for name in result.regions.column_names}
    view = _viewer(result, affine, (float(place[0]), float(place[1]), float(place[2])))
    content: dict[str, Any] = {
        "name": result.scan.path.name,
        "facts": _facts(result),
        "notes": result.notes,
        "p_values": [one.sentence for one in result.p_values],
        "overlay": data_uri(image_png(top)),
        "axial": data_uri(image_png(_picture(result, strips))),
        "peak": number(float(anomaly.max()), 2),
        "peak_mm": ", ".join(number(float(value), 0) for value in place[:3]),
        "threshold": number(result.threshold, 2),
        "whole": maps.patches == 1,
        "gradient": maps.gradient is not None,
        "excess_shown": f"{EXCESS_SHOWN:g}" if maps.excess.any() else "",
        "viewer": view,
        "regions": region_grid(table, "Most abnormal regions", view=view) if len(result.regions) else None,
        "normscape_version": normscape.__version__,
    }
    page = result.folder / PAGE_NAME
    page.write_text(template_environment().get_template("scan.html").render(content), encoding="utf-8")
    return page


def _viewer(result: ScoredScan, affine: NDArray[np.float64], place_mm: tuple[float, float, float]) -> Viewer:
    """The scan, its reconstruction and its anomaly map, on the atlas's grid."""
    maps = result.maps
    layers = [
        scan_layer(maps.image, result.mask, affine),
        reconstruction_layer(maps.reconstruction, maps.covered, affine),
        anomaly_layer(maps.anomaly, result.mask, affine, threshold=result.threshold),
    ]
    return Viewer(
        VIEWER, [Scene("scan", result.scan.path.name, layers, place_mm)], "The pictures below show slices of the same volumes."
    )


def _volumes(result: ScoredScan) -> tuple[NDArray[np.generic], ...]:
    """Grey values of the scan, the anomaly map, and what exceeds the usual."""
    return slices.to_grey(result.maps.image, result.mask), result.maps.anomaly, result.maps.excess


def _picture(result: ScoredScan, planes: list[NDArray[Any]]) -> NDArray[np.uint8]:
    """The scan, the same with the anomaly map over it, and where known the excess, one below the other, enlarged: (H, W, 3)."""
    grey, anomaly, excess = planes
    rows = [grey_picture(grey), overlay(grey, anomaly, result.threshold)]
    if result.maps.excess.any():
        rows.append(coloured((excess / EXCESS_SHOWN).clip(0, 1), grey > 0))
    return np.concatenate(rows).repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def _facts(result: ScoredScan) -> list[tuple[str, str]]:
    scan, measured = result.scan, result.prepared.measured
    facts = [("Age", f"{scan.age_years:g} years" if scan.age_years is not None else "not known")]
    if scan.sex:
        facts.append(("Sex", scan.sex))
    facts += [
        ("Brain", f"{measured['brain_volume_ml']:.0f} ml"),
        ("Overlap with the atlas", f"Dice {measured['atlas_dice']:.3f}"),
        ("Patches", str(result.maps.patches)),
        ("Highest value", f"{result.maps.anomaly.max():.2f}"),
        ("Threshold", f"{result.threshold:.2f}"),
        ("Regions above it", str(len(result.regions))),
    ]
    facts += [(f"p, {one.about}", f"{one.p:.2g}, {one.subjects} healthy") for one in result.p_values]
    return facts
