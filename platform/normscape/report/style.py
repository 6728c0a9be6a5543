"""One look for all figures: light and dark, for the colour-blind too, readable on a phone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from PIL import Image

DPI = 190
"""A panel of 4.8 inches has 912 pixels and is shown at about half of that."""
FONT = 9.0
"""Points; a panel is at most 4.8 inches wide, so that this is 9 pixels even on a phone."""


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; the background is transparent, the page gives it."""

    name: str
    ink: str
    muted: str
    rule: str
    series: tuple[str, ...]
    """Okabe and Ito's palette, brightened for dark pages."""
    ramp_from: float
    ramp_to: float
    """Part of viridis that stands out from the background."""

    @property
    def ramp(self) -> Colormap:
        """Colours for a value on a continuous scale."""
        return ListedColormap(colormaps["viridis"](np.linspace(self.ramp_from, self.ramp_to, 256)))

    @property
    def same(self) -> str:
        """Pairs that share the attribute; normal images."""
        return self.series[0]

    @property
    def different(self) -> str:
        """Pairs that differ in the attribute; anomalous images."""
        return self.series[1]


_OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#b6538f", "#c08a00", "#3aa0d8")
_BRIGHT = ("#5ab4e8", "#f0883e", "#3fc7a0", "#e19ac6", "#e8bd4a", "#a8d8f0")
LIGHT = Theme("light", "#1f2328", "#5d6269", "#d8d4ca", _OKABE_ITO, 0.0, 0.94)
DARK = Theme("dark", "#e9e7e2", "#a4a8ae", "#3b4047", _BRIGHT, 0.2, 1.0)


def panel(
    theme: Theme, *, width: float = 4.8, height: float = 3.1, rows: int = 1, share_x: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of one column of styled axes.

    Args:
        theme: light or dark.
        width: inches.
        height: inches.
        rows: axes, one above the other.
        share_x: all axes show the same range along x.
    """
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    axes = [axis for row in figure.subplots(rows, 1, sharex=share_x, squeeze=False) for axis in row]
    for axis in axes:
        dress(axis, theme)
    return figure, axes


def dress(axis: Axes, theme: Theme) -> None:
    """Thin lines at the left and bottom only, quiet ticks, no frame."""
    axis.set_facecolor("none")
    axis.tick_params(colors=theme.muted, labelcolor=theme.ink, labelsize=FONT - 0.5, length=3, width=0.7)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.muted)
        spine.set_linewidth(0.7)


def label(axis: Axes, theme: Theme, x: str = "", y: str = "") -> None:
    """Axis labels in the theme's ink."""
    axis.set_xlabel(x, color=theme.ink, fontsize=FONT)
    axis.set_ylabel(y, color=theme.ink, fontsize=FONT)


def grid(axis: Axes, theme: Theme, which: str = "y") -> None:
    """Hairlines behind the data."""
    axis.grid(True, axis=which, color=theme.rule, linewidth=0.6)  # type: ignore[arg-type]
    axis.set_axisbelow(True)


def legend(
    axis: Axes,
    theme: Theme,
    *,
    place: str = "best",
    columns: int = 1,
    above: bool = False,
    handles: Sequence[Artist] | None = None,
    title: str = "",
) -> Legend:
    """A legend without a frame; `above` puts it in one line over the axes."""
    look: dict[str, Any] = {"frameon": False, "fontsize": FONT - 0.5, "labelcolor": theme.ink, "ncols": columns}
    look |= {"handlelength": 1.6, "columnspacing": 1.4, "handletextpad": 0.6}
    look |= {"title": title, "title_fontsize": FONT - 0.5, "alignment": "left"} if title else {}
    look |= {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2} if above else {"loc": place}
    return axis.legend(**look) if handles is None else axis.legend(handles=handles, **look)


def mark(axis: Axes, theme: Theme, value: float, text: str, *, vertical: bool = False) -> None:
    """A dashed threshold line with its name at its end."""
    if vertical:
        axis.axvline(value, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)))
        axis.annotate(
            text, (value, 1.0), xycoords=("data", "axes fraction"), xytext=(2, -1), textcoords="offset points",
            ha="left", va="top", color=theme.muted, fontsize=FONT - 1,
        )  # fmt: skip
    else:
        axis.axhline(value, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)))
        axis.annotate(
            text, (1.0, value), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
            ha="left", va="center", color=theme.muted, fontsize=FONT - 1, annotation_clip=False,
        )  # fmt: skip


def png(figure: Figure) -> bytes:
    """The figure as PNG with a transparent background."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, transparent=True)
    return buffer.getvalue()


def on_white(data: bytes) -> Image.Image:
    """A transparent PNG laid on white, for files that are looked at outside the page."""
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
