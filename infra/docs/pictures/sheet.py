"""A sheet of paper for diagrams: boxes, arrows and words at places in inches, on white, so that it reads on dark pages, too."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

DPI = 130
"""A sheet of 8 inches has 1040 pixels and is shown at about two thirds of that."""
LARGEST_BYTES = 150_000
INK, MUTED, PAPER = "#1f2328", "#565c64", "#ffffff"
TITLE, TEXT = 10.0, 8.6
"""Points."""
_LINE = 0.158
"""Inches from a line of text to the next one."""
Colour = Literal["grey", "blue", "orange", "green", "pink", "yellow"]
FILLS: dict[Colour, tuple[str, str]] = {
    "grey": ("#eef0f2", "#9aa1a9"),
    "blue": ("#dcebf8", "#3f86bd"),
    "orange": ("#fce5d3", "#d07a35"),
    "green": ("#d8f0e6", "#2f9a78"),
    "pink": ("#f5e1ee", "#b6669a"),
    "yellow": ("#fbf1cf", "#b8912a"),
}
"""Inside and edge."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A box's lower left corner and its sides, in inches."""

    x: float
    y: float
    width: float
    height: float

    @property
    def top(self) -> Point:
        """Middle of the upper edge."""
        return self.x + self.width / 2, self.y + self.height

    @property
    def bottom(self) -> Point:
        """Middle of the lower edge."""
        return self.x + self.width / 2, self.y

    @property
    def left(self) -> Point:
        """Middle of the left edge."""
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> Point:
        """Middle of the right edge."""
        return self.x + self.width, self.y + self.height / 2


class Sheet:
    """An empty sheet.

    Args:
        width, height: inches; places count from the lower left corner.
    """

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), facecolor=PAPER)
        FigureCanvasAgg(self.figure)
        self.axes: Axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")

    def box(
        self, x: float, y: float, width: float, height: float, title: str = "", text: str = "", colour: Colour = "grey"
    ) -> Box:
        """A rounded box with a bold title and lines of text, all in its middle."""
        inside, edge = FILLS[colour]
        style = "round,pad=0,rounding_size=0.07"
        patch = FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=inside, edgecolor=edge, linewidth=1.1)
        self.axes.add_patch(patch)
        heads, lines = title.split("\n") if title else [], text.split("\n") if text else []
        high = y + height / 2 + (len(heads) + len(lines) - 1) * _LINE / 2
        for i, line in enumerate(heads + lines):
            bold = i < len(heads)
            self.text(x + width / 2, high - i * _LINE, line, size=TITLE if bold else TEXT, bold=bold)
        return Box(x, y, width, height)

    def text(
        self, x: float, y: float, text: str, *, size: float = TEXT, bold: bool = False, muted: bool = False, left: bool = False
    ) -> None:
        """Words around a place, or beginning there."""
        self.axes.text(
            x, y, text, fontsize=size, fontweight="bold" if bold else "normal", color=MUTED if muted else INK,
            ha="left" if left else "center", va="center", linespacing=1.3,
        )  # fmt: skip

    def arrow(
        self, start: Point, end: Point, text: str = "", *, bend: float = 0.0, shift: Point = (0.0, 0.0), dashed: bool = False
    ) -> None:
        """An arrow with words in its middle, moved by `shift`."""
        arrow = FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=11, color=MUTED, linewidth=1.2, shrinkA=2, shrinkB=2,
            connectionstyle=f"arc3,rad={bend}", linestyle="--" if dashed else "-",
        )  # fmt: skip
        self.axes.add_patch(arrow)
        if text:
            self.text((start[0] + end[0]) / 2 + shift[0], (start[1] + end[1]) / 2 + shift[1], text, muted=True)

    def save(self, path: Path) -> None:
        """Write the sheet as PNG."""
        save(self.figure, path)


def save(figure: Figure, path: Path, *, colours: int = 255, rare: bool = False) -> None:
    """Write a figure as PNG on white, as `save_picture` does."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=PAPER)
    save_picture(Image.open(buffer), path, colours=colours, rare=rare)


def save_picture(image: Image.Image, path: Path, *, colours: int = 255, rare: bool = False) -> None:
    """Write a picture as PNG with a palette of its own, which keeps it small.

    Args:
        image: to write.
        path: where to.
        colours: of the palette.
        rare: thin lines keep their colour, and shades are coarser.

    Raises:
        ValueError: it is larger than `LARGEST_BYTES` even so.
    """
    method = Image.Quantize.MAXCOVERAGE if rare else Image.Quantize.MEDIANCUT
    picture = image.convert("RGB").quantize(colours, method=method, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="PNG", optimize=True)
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, more than {LARGEST_BYTES}")
