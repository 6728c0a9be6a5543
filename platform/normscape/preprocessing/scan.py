"""One scan from its file to the atlas's grid.

Writes, into a folder of the scan's own:

- `t1.nii.gz`, float32 on the atlas's grid: bias-corrected intensities, 0 outside the mask;
- `mask.nii.gz`, uint8 on the atlas's grid;
- `to_scan.tfm`: takes points of the atlas to points of the scan; `registration.to_scan_space` brings maps back with it;
- `quality.json`, last: what was measured, or why the scan is quarantined. A scan that has it is not done again under the same
  settings.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normscape.datasets.cohort import Scan
from normscape.errors import DataError, UserError
from normscape.preprocessing import quality
from normscape.preprocessing.atlas import Atlas
from normscape.preprocessing.bias import correct_bias
from normscape.preprocessing.reading import read_labels, read_scan
from normscape.preprocessing.registration import register, warp, warp_mask, write_transform
from normscape.preprocessing.settings import PreprocessingSettings
from normscape.preprocessing.stripping import find_brain

T1_NAME, MASK_NAME, TRANSFORM_NAME, QUALITY_NAME = "t1.nii.gz", "mask.nii.gz", "to_scan.tfm", "quality.json"
MAX_INTENSITY = 30_000.0
"""Volumes are kept in 16 bits, which end at 65504: a brighter scan is divided by a power of ten."""
_LONGEST_REASON = 300


@dataclass(frozen=True)
class PreparedScan:
    """What became of a scan.

    Attributes:
        scan: as it was read from the cohort.
        folder: of its files.
        measured: what was measured, name -> value: brain_volume_ml, atlas_dice and more, see `quality.measure`.
        flags: what a person should look at; empty for most.
        step: where it failed: read, strip, bias, register, overlap, or write; empty when it did not.
        reason: why it is quarantined; empty when it is not.
        seconds: spent on it.
    """

    scan: Scan
    folder: Path
    measured: dict[str, float]
    flags: tuple[str, ...] = ()
    step: str = ""
    reason: str = ""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether it goes into the prepared cohort."""
        return not self.reason


class _Quarantined(Exception):
    """A scan that cannot be prepared."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(reason)
        self.step, self.reason = step, reason


def prepare_scan(scan: Scan, settings: PreprocessingSettings, atlas: Atlas, folder: Path) -> PreparedScan:
    """Read, strip, correct, register and write one scan, unless that is done already.

    Args:
        scan: which one.
        settings: what to do.
        atlas: at the spacing of the settings.
        folder: of the cohort; the scan's own is made in it (`scan_folder`).

    Returns:
        What was measured. A scan that cannot be prepared comes back with the step and the reason.

    Raises:
        UserError: the stripper or the registration is not installed, or the disk is full.
    """
    own = scan_folder(folder, scan)
    done = prepared_before(scan, settings, atlas, folder)
    if done is not None:
        return done
    began = time.perf_counter()
    with _during("write"):
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
    measured: dict[str, float] = {}
    flags: tuple[str, ...] = ()
    step, reason = "", ""
    try:
        measured, flags = _prepare(scan, settings, atlas, own, measured)
    except _Quarantined as error:
        step, reason = error.step, error.reason
    result = PreparedScan(scan, own, measured, flags, step, reason, round(time.perf_counter() - began, 2))
    with _during("write"):
        _write_quality(result, _digest(scan, settings, atlas))
    return result


def prepared_before(scan: Scan, settings: PreprocessingSettings, atlas: Atlas, folder: Path) -> PreparedScan | None:
    """What an earlier attempt left of a scan, under the same settings and from the same file; None when it is to be done."""
    own = scan_folder(folder, scan)
    try:
        found = json.loads((own / QUALITY_NAME).read_text(encoding="utf-8"))
        if found["digest"] != _digest(scan, settings, atlas):
            return None
        return PreparedScan(
            scan, own, found["measured"], tuple(found["flags"]), found["step"], found["reason"], float(found["seconds"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def scan_folder(folder: Path, scan: Scan) -> Path:
    """The folder of a scan's files: its name, made harmless.

    Letters, digits, dots, dashes and underscores stay. A name with anything else, one that begins with a dot and a very long
    one are shortened and get a digest of the full name, so that no two names share a folder and none leads out of it.
    """
    name = scan.name
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80].lstrip(".-")
    if plain != name or (scan.session == "" and "_" in scan.subject):
        plain = f"{plain}-{hashlib.sha256(f'{scan.subject}/{scan.session}'.encode()).hexdigest()[:8]}"
    return folder / "scans" / plain


def quarantined(scan: Scan, folder: Path, step: str, reason: str) -> PreparedScan:
    """A scan that failed in a way that may not come again; nothing is written, so that the next run tries it once more."""
    return PreparedScan(scan, scan_folder(folder, scan), {}, (), step, one_line(reason))


def one_line(text: object) -> str:
    """A message without line breaks, of bearable length."""
    return " ".join(str(text).split())[:_LONGEST_REASON]


def _prepare(
    scan: Scan, settings: PreprocessingSettings, atlas: Atlas, own: Path, measured: dict[str, float]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """All steps; `measured` is filled as they go, so that a scan that fails late still tells what was measured."""
    import SimpleITK as sitk

    with _during("read"):
        image = read_scan(scan.path)
        labels = read_labels(scan.labels, image) if scan.labels else None
        highest = float(np.abs(sitk.GetArrayViewFromImage(image)).max())
        divisor = 10.0 ** max(0, int(np.ceil(np.log10(highest / MAX_INTENSITY))))
        image = sitk.Cast(image / divisor, sitk.sitkFloat32) if divisor > 1 else image
    with _during("strip"):
        mask = find_brain(image, settings, scan.mask)
        measured |= quality.of_mask(mask)
        if labels is not None:
            measured |= quality.of_labels(mask, labels, settings.ventricle_labels)
    with _during("bias"):
        corrected = correct_bias(image, mask) if settings.bias_correction else image
    with _during("register"):
        transform = register(corrected, mask, atlas, settings)
        placed_mask = warp_mask(mask, transform, atlas, settings.opening_radius_mm)
        placed = sitk.Mask(warp(corrected, transform, atlas), placed_mask)
    measured |= quality.of_registration(placed_mask, transform, atlas) | {"intensity_divisor": divisor}
    with _during("write"):
        sitk.WriteImage(placed, str(own / T1_NAME), useCompression=True)
        sitk.WriteImage(placed_mask, str(own / MASK_NAME), useCompression=True)
        write_transform(transform, own / TRANSFORM_NAME)
    if measured["atlas_dice"] < settings.min_overlap:
        found = f"Dice of its brain mask with the atlas's is {measured['atlas_dice']:.3f}"
        raise _Quarantined("overlap", f"{found}; expected at least {settings.min_overlap:g}")
    return measured, quality.flags(measured, settings)


@contextmanager
def _during(step: str) -> Iterator[None]:
    """Turn what goes wrong with a scan into its step and reason; a full disk and missing packages are no fault of the scan."""
    try:
        yield
    except DataError as error:
        raise _Quarantined(step, one_line(error)) from error
    except UserError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or step == "write":
            raise UserError(f"cannot write prepared scans: {error.strerror or error}") from error
        raise _Quarantined(step, one_line(error)) from error
    except RuntimeError as error:  # of SimpleITK, and of networks
        if step == "write":
            raise UserError(f"cannot write prepared scans: {one_line(error)}") from error
        raise _Quarantined(step, one_line(str(error).split("ERROR:")[-1])) from error


def _digest(scan: Scan, settings: PreprocessingSettings, atlas: Atlas) -> str:
    """Changes with the settings, the atlas, and any of the scan's files."""
    files: list[list[int] | str | None] = []
    for path in (scan.path, scan.mask, scan.labels):
        try:
            about = None if path is None else path.stat()
            files.append(None if about is None else [about.st_size, about.st_mtime_ns])
        except OSError:
            files.append("missing")
    values = [settings.digest(), atlas.digest, atlas.spacing_mm, scan.subject, scan.session, files]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _write_quality(result: PreparedScan, digest: str) -> None:
    scan = result.scan
    content: dict[str, Any] = {
        "subject": scan.subject,
        "session": scan.session,
        "scan": str(scan.path),
        "digest": digest,
        "measured": {name: round(value, 6) for name, value in result.measured.items()},
        "flags": list(result.flags),
        "step": result.step,
        "reason": result.reason,
        "seconds": result.seconds,
    }
    aside = result.folder / f"{QUALITY_NAME}.tmp"
    aside.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, result.folder / QUALITY_NAME)
