"""Volumes in a page: what the viewer shows, and the volumes themselves, small enough to lie in the page.

A viewer holds scenes, of which one is shown at a time; a scene is a scan with layers over it, all on one grid or not. Each layer
is a NIfTI volume of whole numbers from 0 to 255 (`nifti`), either in the page (`Layer.data`) or behind an address (`Layer.url`).

In a template, in an environment that `install` has prepared::

    {% from "viewer.html" import viewer, viewer_style, viewer_scripts %}
    <style>{{ viewer_style() }}</style>
    {{ viewer(content.viewer) }}
    ...
    {{ viewer_scripts() }}

`templates/viewer.js` says how a script puts another scene into a viewer. The volumes are drawn by NiiVue (`vendored/`).
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, Literal

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from normscape.datasets.slices import brain_box

Role = Literal["scan", "reconstruction", "anomaly", "lesion"]
LEVELS = 254
"""Steps between the lowest and the highest value that are kept; 0 stands for outside."""


@dataclass(frozen=True)
class Layer:
    """One volume of a scene.

    Attributes:
        role: what it is; decides its colours.
        label: what a reader reads.
        low: value of the first colour; below it the layer is transparent, the scan black.
        high: value of the last colour.
        opacity: at first, in [0, 1].
        visible: at first.
        data: the volume, a gzipped NIfTI file as base64; empty where there is a `url`.
        url: address of the volume, which ends in `.nii.gz`.
        sliding: whether the reader may move `low`: a threshold.
    """

    role: Role
    label: str
    low: float
    high: float
    opacity: float = 1.0
    visible: bool = True
    data: str = ""
    url: str = ""
    sliding: bool = False


@dataclass(frozen=True)
class Scene:
    """A scan and what lies over it.

    Attributes:
        name: unique in its viewer; rows of tables point to it.
        title: what a reader reads.
        layers: the first one is the scan.
        place_mm: x, y, z in RAS millimetres that the crosshair is at first; None: the middle.
    """

    name: str
    title: str
    layers: Sequence[Layer]
    place_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Target:
    """Where a row of a table moves the crosshair of a viewer.

    Attributes:
        viewer: its name.
        scene: name of the scene that the place is in.
        place_mm: x, y, z in RAS millimetres.
        about: what the place is; said before the coordinates.
    """

    viewer: str
    scene: str
    place_mm: tuple[float, float, float]
    about: str = ""

    @property
    def text(self) -> str:
        """The place, as the script reads it."""
        return ",".join(f"{value:.2f}" for value in self.place_mm)


@dataclass(frozen=True)
class Viewer:
    """A viewer of a page.

    Attributes:
        name: id of its element.
        scenes: to choose from; the first one is shown. None: a script brings them.
        otherwise: sentence for browsers that cannot show it.
    """

    name: str
    scenes: Sequence[Scene] = ()
    otherwise: str = "The pictures on this page show slices of the same volumes."

    @property
    def description(self) -> dict[str, Any]:
        """What the script reads."""
        return {"scenes": [asdict(scene) for scene in self.scenes]}


def install(environment: jinja2.Environment) -> None:
    """Make the templates of the viewer usable in an environment that finds `viewer.html`."""
    environment.globals["viewer_text"] = _text


def _text(name: str) -> Markup:
    """A file of this package, to lie in a page as it is: `viewer.css`, `viewer.js` or `niivue.umd.js`."""
    folder = "vendored" if name == "niivue.umd.js" else "templates"
    return Markup((resources.files("normscape.report") / folder / name).read_text(encoding="utf-8"))


def scan_layer(
    volume: NDArray[np.floating], inside: NDArray[np.generic], affine: NDArray[np.float64], *, low: float = -1.0, high: float = 1.0
) -> Layer:
    """The scan, grey.

    Args:
        volume: (Z, Y, X).
        inside: (Z, Y, X), not zero in the brain; the volume is cut to what it spans.
        affine: (4, 4), index (z, y, x, 1) to RAS millimetres.
        low: value that is black.
        high: value that is white.
    """
    return Layer("scan", "Scan", low, high, data=packed(volume, inside, affine, low, high))


def reconstruction_layer(
    volume: NDArray[np.floating], inside: NDArray[np.generic], affine: NDArray[np.float64], *, low: float = -1.0, high: float = 1.0
) -> Layer:
    """What the model made of the scan, hidden at first; arguments as in `scan_layer`."""
    data = packed(volume, inside, affine, low, high)
    return Layer("reconstruction", "Reconstruction", low, high, visible=False, data=data)


def anomaly_layer(
    volume: NDArray[np.floating], inside: NDArray[np.generic], affine: NDArray[np.float64], *, threshold: float
) -> Layer:
    """An anomaly map with values in [0, 1], from a threshold upwards; the other arguments as in `scan_layer`."""
    data = packed(volume, inside, affine, 0.0, 1.0)
    return Layer("anomaly", "Anomaly map", threshold, 1.0, opacity=0.65, data=data, sliding=True)


def lesion_layer(lesion: NDArray[np.generic], inside: NDArray[np.generic], affine: NDArray[np.float64], *, label: str) -> Layer:
    """A marked part: `lesion` (Z, Y, X) is not zero in it; the other arguments as in `scan_layer`."""
    marked = np.asarray(lesion) != 0
    data = packed(marked.astype(np.float32), np.asarray(inside) != 0, affine, 0.0, 1.0, part=marked)
    return Layer("lesion", label, 0.5, 1.0, opacity=0.45, data=data)


def packed(
    volume: NDArray[np.floating],
    inside: NDArray[np.generic],
    affine: NDArray[np.float64],
    low: float,
    high: float,
    *,
    part: NDArray[np.bool_] | None = None,
) -> str:
    """A volume as base64 of `nifti`, cut to the box of the brain."""
    return base64.b64encode(nifti(volume, inside, affine, low, high, part=part)).decode("ascii")


def nifti(
    volume: NDArray[np.floating],
    inside: NDArray[np.generic],
    affine: NDArray[np.float64],
    low: float,
    high: float,
    *,
    part: NDArray[np.bool_] | None = None,
) -> bytes:
    """A gzipped NIfTI file of whole numbers, cut to a box; the same volume gives the same bytes.

    A value v is kept as 1 + 254 (v - low) / (high - low), to the nearest, and 0 outside; slope and intercept of the file give
    back v, and for the outside less than `low`. The rounding error is at most (high - low) / 508.

    Args:
        volume: (Z, Y, X).
        inside: (Z, Y, X), not zero inside of the brain; its box, with some room, is what is kept.
        affine: (4, 4), index (z, y, x, 1) of the whole volume to RAS millimetres.
        low: smallest value that can be kept.
        high: largest one, above `low`.
        part: bool (Z, Y, X), voxels that have a value; `inside` when None.
    """
    import nibabel as nib

    box = brain_box(inside)
    values = np.asarray(volume[box], dtype=np.float32)
    having = np.asarray(inside)[box] != 0 if part is None else part[box]
    scaled = 1 + LEVELS * ((values - low) / (high - low)).clip(0, 1)
    whole = np.where(having, scaled.round(), 0).astype(np.uint8).transpose(2, 1, 0)
    moved = affine[:, [2, 1, 0, 3]].astype(np.float64)
    moved[:3, 3] = (affine @ [*(side.start for side in box), 1.0])[:3]
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(whole.shape)
    header.set_zooms(np.sqrt((moved[:3, :3] ** 2).sum(axis=0)))
    header.set_xyzt_units("mm")
    header.set_sform(moved, code="scanner")
    header.set_qform(moved, code="scanner", strip_shears=True)
    slope = (high - low) / LEVELS
    header.set_slope_inter(slope, low - slope)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    # Written by hand: the library's own way to a file chooses slope and intercept itself.
    return gzip.compress(header.binaryblock + b"\0\0\0\0" + whole.tobytes(order="F"), compresslevel=9, mtime=0)
