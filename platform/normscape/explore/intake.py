"""Is a dropped file a scan that can be read, and no more than its header says? Asked before anything is loaded."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import IO

from normscape.errors import DataError
from normscape.explore.storage import Upload

MOST_VOXELS = 512**3
"""A head at half a millimetre has as many."""
_HEADS = {348: 352, 540: 544}
"""Size that a NIfTI header says of itself, to the bytes before its image."""
_CHUNK = 1 << 20
_SPARE_BYTES = 1 << 20
"""After the image; a few writers pad."""
_MAGIC = {348: (b"n+1\0",), 540: (b"n+2\0\r\n\x1a\n",)}


def check_scan(upload: Upload) -> None:
    """Read a dropped file's header, its length, and then the scan as `normscape score` does.

    Raises:
        DataError: not a NIfTI file, cut off, larger than its header says or than a head, not one 3D image, or not finite.
    """
    from normscape.preprocessing.reading import read_scan

    try:
        with open_scan(upload.path) as file:
            left = declared_bytes(file) + _SPARE_BYTES
            while part := file.read(_CHUNK):  # never the whole of it at once, never far past what was declared
                left -= len(part)
                if left < 0:
                    raise DataError("the file holds far more than its header says; it is not unpacked any further")
        read_scan(upload.path)
    except EOFError as error:
        raise DataError(f"{upload.name}: the compressed file is cut off") from error
    except (OSError, zlib.error) as error:
        raise DataError(f"{upload.name}: not a readable file ({getattr(error, 'strerror', None) or error})") from error
    except DataError as error:
        raise DataError(said(upload, error)) from error


def open_scan(path: Path) -> IO[bytes]:
    """A NIfTI file's content, unpacked while it is read."""
    return gzip.open(path) if path.name.endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def declared_bytes(file: IO[bytes]) -> int:
    """Length that a NIfTI header gives its file.

    Args:
        file: at its begin; left behind the header.

    Raises:
        DataError: not a header of NIfTI-1 or NIfTI-2, not one 3D image, or one that is larger than any head.
    """
    start = file.read(4)
    if len(start) < 4:
        raise DataError("expected a NIfTI file, found an empty one")
    order, size = next(((order, number) for order in "<>" if (number := struct.unpack(f"{order}i", start)[0]) in _HEADS), ("", 0))
    head = start + file.read(_HEADS[size] - 4) if order else start
    if not order or len(head) < _HEADS[size]:
        raise DataError("expected a NIfTI file, found something else")
    if size == 348:
        dims, bits = struct.unpack_from(f"{order}8h", head, 40), struct.unpack_from(f"{order}h", head, 72)[0]
        offset, magic = struct.unpack_from(f"{order}f", head, 108)[0], head[344:348]
    else:
        magic, bits = head[4:12], struct.unpack_from(f"{order}h", head, 14)[0]
        dims, offset = struct.unpack_from(f"{order}8q", head, 16), struct.unpack_from(f"{order}q", head, 168)[0]
    if magic not in _MAGIC[size]:
        raise DataError("expected a NIfTI file with header and image in one, found something else")
    sides = dims[1 : 1 + dims[0]] if 0 < dims[0] <= 7 else ()
    if len(sides) < 3 or min(sides) < 1 or any(side != 1 for side in sides[3:]):
        shown = " x ".join(map(str, sides)) or "no"
        raise DataError(f"expected one 3D image; found {shown} voxels")
    voxels = sides[0] * sides[1] * sides[2]
    if voxels > MOST_VOXELS:
        raise DataError(f"its header says {' x '.join(map(str, sides[:3]))} voxels; expected at most {MOST_VOXELS}")
    if bits not in (8, 16, 32, 64) or not 0 <= offset <= _SPARE_BYTES:
        raise DataError("its header names no kind of number that a scan has")
    return int(offset) + voxels * bits // 8


def said(upload: Upload, error: Exception) -> str:
    """A message about the file under the name that the person knows."""
    text = str(error)
    for ours in (str(upload.path), str(upload.folder), upload.path.name):
        text = text.replace(ours, upload.name)
    return text if text.startswith(upload.name) else f"{upload.name}: {text}"
