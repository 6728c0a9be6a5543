"""Numbers and names as a reader wants to see them."""

from __future__ import annotations

import math

_DETECTORS = {
    "l1": "L1 threshold",
    "forest": "random forest",
    "forest_flat": "forest, flat places weighed",
    "forest_residuals": "forest, plain residuals",
    "forest_thesis": "forest, thesis's features",
    "network": "network, image beside what is usual",
    "pooled": "forest and network together",
    "atlas": "atlas threshold, no generator",
    "unsupervised": "unsupervised, no blots seen",
}
_SPLITS = {
    "train": "train, as fitted",
    "train_cv": "train, out of fold",
    "calibration": "calibration, where thresholds were chosen",
    "test": "test",
}


def detector_name(detector: str) -> str:
    """`l1` -> `L1 threshold`; unknown ones keep their name with spaces."""
    return _DETECTORS.get(detector, detector.replace("_", " "))


def split_name(split: str) -> str:
    """What a row of the detection table was measured on."""
    return _SPLITS.get(split, split)


def feature_name(column: str) -> str:
    """`length/identity/4` -> `length identity at 4`; `residual_l1` -> `residual l1`."""
    kind, *place = column.split("/")
    return " at ".join([" ".join([kind, *place[:1]]), *place[1:]]).replace("_", " ")


def title(text: str) -> str:
    """First letter large, the rest as it is."""
    return text[:1].upper() + text[1:]


def quantity(name: str, unit: str) -> str:
    """`angle (degrees)`; just the name without a unit."""
    return f"{name} ({unit})" if unit else name


def with_unit(value: float, unit: str, digits: int = 1) -> str:
    """`2.4°`, `31.0 years`."""
    text = number(value, digits)
    if unit in ("degrees", "degree", "°"):
        return f"{text}°"
    return f"{text} {unit}".strip()


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits; an en dash when there is no number."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as `97.5 %`, the space not breaking."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}\u00a0%"


def duration(seconds: float | None) -> str:
    """`43 s`, `12 min 5 s`, `1 h 24 min`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def significant(value: float) -> str:
    """Four significant digits, for tables of mixed numbers."""
    return "–" if not math.isfinite(value) else f"{value:.4g}"
