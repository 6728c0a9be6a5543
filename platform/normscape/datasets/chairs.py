"""Rotating chairs in the manner of RC-49 (thesis III.A.1), ray-traced from 3D models that ship with the package.

The asset `assets/chairs.npz` (made by `infra/assets/pack_chairs.py`, authors in `assets/CHAIRS_ATTRIBUTION.md`) holds, for N
chairs: `names` (N,); `vertices` uint16 (V, 3), `faces` uint16 (F, 3) and `colours` uint8 (F, 3) of all chairs one after the
other, with `vertex_start` and `face_start` (N + 1,) where each begins; `placement` float32 (N, 4), low corner and length of one
step in centimetres. y points up and a chair's front towards +z; faces count from the chair's first vertex.

The picture: an orthographic camera raised by `ELEVATION_DEGREES`; at angle 0 it looks at the front, and with growing angle the
chair turns counter-clockwise as seen from above. Light is fixed to the camera. A chair's scale and centre are those of a whole
turn, so that neither changes with the angle. White background.
"""

from __future__ import annotations

import functools
import hashlib
import io
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normscape.errors import DataError

RENDERER_VERSION = 1
"""Part of the cache key: raise it when a picture changes."""
ELEVATION_DEGREES = 20.0
FILL = 0.88
"""Share of the frame that a chair's longer extent takes."""
AMBIENT, HEADLIGHT, SIDE_LIGHT = 0.50, 0.24, 0.26
SIDE_DIRECTION = (-0.55, 0.75, 0.37)
"""Towards the side light: right, up, towards the camera."""
DARKEST, LIGHTEST = 0.05, 0.92
"""Paint is squeezed into this range: black shows its shading, and white stays darker than the background."""
CHUNK = 50
"""Images that a worker renders in one go."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Chair:
    """One chair. vertices float32 (V, 3) in centimetres; faces int32 (F, 3); colours float32 (F, 3) in 0..1."""

    name: str
    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    colours: NDArray[np.float32]


@functools.lru_cache(maxsize=1)
def _asset() -> tuple[str, dict[str, NDArray[Any]]]:
    """Digest and arrays of the vendored asset."""
    content = resources.files("normscape.datasets").joinpath("assets/chairs.npz").read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return hashlib.sha256(content).hexdigest(), dict(arrays)


def chair_names() -> tuple[str, ...]:
    """Names of all chairs, in the asset's order."""
    return tuple(str(name) for name in _asset()[1]["names"])


def load_chair(index: int) -> Chair:
    """The chair with this place in `chair_names()`."""
    data = _asset()[1]
    vertices = data["vertices"][data["vertex_start"][index] : data["vertex_start"][index + 1]]
    rows = slice(data["face_start"][index], data["face_start"][index + 1])
    low, step = data["placement"][index, :3], data["placement"][index, 3]
    return Chair(
        name=str(data["names"][index]),
        vertices=vertices.astype(np.float32) * step + low,
        faces=data["faces"][rows].astype(np.int32),
        colours=data["colours"][rows].astype(np.float32) / 255.0,
    )


def angle_grid(minimum: float, maximum: float, step: float) -> NDArray[np.float64]:
    """Angles from minimum to maximum (included when the step hits it), in degrees."""
    count = int(np.floor((maximum - minimum) / step + 1e-6)) + 1
    return np.round(minimum + step * np.arange(count), 6)


class ChairRenderer:
    """Renders one chair at any angle; the ray-tracing scene is built once.

    Args:
        chair: the model.
        image_size: side S of the images, in pixels.
        supersample: rays a pixel along each axis.
    """

    def __init__(self, chair: Chair, *, image_size: int, supersample: int) -> None:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        self.image_size, self.supersample = image_size, supersample
        vertices = _framed(chair.vertices)
        self.colours = np.float32(DARKEST) + chair.colours * np.float32(LIGHTEST - DARKEST)
        corners = vertices[chair.faces]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        self.normals = (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)).astype(np.float32)
        self.scene = EmbreeScene()
        TriangleMesh(self.scene, np.ascontiguousarray(corners, dtype=np.float32))
        # Ray grid in the image plane, row 0 on top: (S * supersample) ** 2 rays, less those that miss the chair at every angle.
        ticks = (np.arange(image_size * supersample) + 0.5) / (image_size * supersample) * 2.0 - 1.0
        right, up = (grid.reshape(-1, 1).astype(np.float32) for grid in np.meshgrid(ticks, -ticks))
        low, high, width = _extent(vertices)
        self.rays = np.flatnonzero((np.abs(right) <= width + 1e-3) & (up >= low - 1e-3) & (up <= high + 1e-3))
        self.right, self.up = right[self.rays], up[self.rays]

    def render(self, angle_degrees: float) -> NDArray[np.uint8]:
        """One image: uint8 (3, S, S)."""
        right, up, back = _camera(angle_degrees)
        origins = self.right * right + self.up * up + np.float32(4.0) * back
        directions = np.broadcast_to(-back, origins.shape)
        hit = self.scene.run(origins, np.ascontiguousarray(directions))
        side, n = self.image_size, self.supersample
        image = np.ones(((side * n) ** 2, 3), dtype=np.float32)
        seen = hit >= 0
        image[self.rays[seen]] = self._shade(right, up, back)[hit[seen]]
        mean = image.reshape(side, n, side, n, 3).mean(axis=(1, 3))
        return np.rint(mean.transpose(2, 0, 1) * 255.0).astype(np.uint8)

    def _shade(self, right: NDArray[np.float32], up: NDArray[np.float32], back: NDArray[np.float32]) -> NDArray[np.float32]:
        """Colour of every face under the camera's light (Lambert); a face is painted on both sides: (F, 3)."""
        facing = self.normals @ back
        light = np.array(SIDE_DIRECTION, dtype=np.float32)
        light = (light[0] * right + light[1] * up + light[2] * back) / np.linalg.norm(light)
        lit = (self.normals @ light) * np.where(facing < 0, np.float32(-1), np.float32(1))
        brightness = AMBIENT + HEADLIGHT * np.abs(facing) + SIDE_LIGHT * np.maximum(lit, 0)
        return (self.colours * brightness[:, None]).astype(np.float32)


def _camera(angle_degrees: float) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Unit vectors right, up, and back (from the chair to the camera): turning the chair by +angle turns the camera by -angle."""
    a, e = np.deg2rad(-angle_degrees), np.deg2rad(ELEVATION_DEGREES)
    right = np.array([np.cos(a), 0.0, -np.sin(a)])
    back = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    return right.astype(np.float32), np.cross(back, right).astype(np.float32), back.astype(np.float32)


def _framed(vertices: NDArray[np.float32]) -> NDArray[np.float64]:
    """Vertices moved and scaled so that over a whole turn the chair fills FILL of the frame [-1, 1] and stays inside it."""
    points = vertices.astype(np.float64)
    points = points - (points.min(axis=0) + points.max(axis=0)) / 2
    low, high, width = _extent(points)
    # Moving along the turning axis shifts the picture by cos(elevation) of it, at every angle alike.
    points[:, 1] -= (low + high) / 2 / np.cos(np.deg2rad(ELEVATION_DEGREES))
    return points * (FILL / max(width, (high - low) / 2))


def _extent(points: NDArray[np.float64]) -> tuple[float, float, float]:
    """Lowest and highest point, and largest distance from the middle column, in the picture over a whole turn."""
    turns = [_camera(angle) for angle in np.arange(0.0, 360.0, 5.0)]
    heights = np.stack([points @ up for _, up, _ in turns])
    return float(heights.min()), float(heights.max()), max(float(np.abs(points @ right).max()) for right, _, _ in turns)


@functools.lru_cache(maxsize=1)
def _renderer(index: int, image_size: int, supersample: int) -> ChairRenderer:
    return ChairRenderer(load_chair(index), image_size=image_size, supersample=supersample)


def render_chunk(index: int, angles: NDArray[np.float64], image_size: int, supersample: int) -> NDArray[np.uint8]:
    """Images of one chair: uint8 (A, 3, S, S)."""
    renderer = _renderer(index, image_size, supersample)
    return np.stack([renderer.render(float(angle)) for angle in angles])


def cache_folder() -> Path:
    """Where rendered images are kept: $NORMSCAPE_CACHE, or ~/.cache/normscape."""
    return Path(os.environ.get("NORMSCAPE_CACHE") or Path.home() / ".cache" / "normscape")


def rendered_chairs(
    *,
    image_size: int,
    supersample: int,
    angles: NDArray[np.float64],
    chairs: tuple[int, ...] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """Images of the chairs, chair by chair and angle by angle, from the cache or rendered into it.

    Args:
        image_size: side S in pixels.
        supersample: rays a pixel along each axis.
        angles: (A,) degrees.
        chairs: places in `chair_names()`; all when None.
        workers: processes; the machine's cores when None.
        progress: called with (images done, images in all).

    Returns:
        uint8 (chairs * A, 3, S, S), memory-mapped copy-on-write.

    Raises:
        DataError: the cache cannot be written (a full disk, no permission), or a rendering process was killed.
    """
    chosen = tuple(range(len(chair_names()))) if chairs is None else chairs
    path = cache_folder() / f"chairs-{image_size}px-{_cache_key(image_size, supersample, angles, chosen)}.npy"
    shape = (len(chosen) * len(angles), 3, image_size, image_size)
    images = _read_cache(path, shape)
    if images is None:
        try:
            with _written_aside(path) as part:
                _render_into(part, shape, image_size, supersample, angles, chosen, workers or os.cpu_count() or 1, progress)
        except OSError as error:
            raise DataError(
                f"cannot write rendered chairs to {path}: {error.strerror or error}\n"
                f"{np.prod(shape) / 1e6:.0f} MB are needed; set NORMSCAPE_CACHE to a folder with space"
            ) from error
        except BrokenProcessPool as error:
            raise DataError("a process that renders chairs ended unexpectedly: was it killed, or is memory short?") from error
        images = _read_cache(path, shape)
    if images is None:
        raise DataError(f"{path} was written and cannot be read back as {shape} uint8")
    return images


def _cache_key(image_size: int, supersample: int, angles: NDArray[np.float64], chairs: tuple[int, ...]) -> str:
    text = repr((_asset()[0], RENDERER_VERSION, image_size, supersample, chairs))
    return hashlib.sha256(text.encode() + np.ascontiguousarray(angles, dtype="<f8").tobytes()).hexdigest()[:16]


def _read_cache(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The cached images, or None when the file is absent or not what it should be."""
    try:
        images = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


@contextmanager
def _written_aside(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` at the end and is removed on an error. Of two writers the last one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f"{path.stem}.*.partial"):  # left by a killed process
        if time.time() - old.stat().st_mtime > 86400:
            old.unlink(missing_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _render_into(
    part: Path,
    shape: tuple[int, ...],
    image_size: int,
    supersample: int,
    angles: NDArray[np.float64],
    chairs: tuple[int, ...],
    workers: int,
    progress: Progress | None,
) -> None:
    """Write the .npy file `part`. Plain writes, not a memory map: a full disk is then an error and not a bus error."""
    pieces = [(c, start) for c in range(len(chairs)) for start in range(0, len(angles), CHUNK)]
    done = 0
    with part.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        header = file.tell()
        image_bytes = 3 * image_size * image_size

        def write(piece: tuple[int, int], images: NDArray[np.uint8]) -> None:
            nonlocal done
            file.seek(header + (piece[0] * len(angles) + piece[1]) * image_bytes)
            file.write(images.tobytes())
            done += len(images)
            if progress is not None:
                progress(done, shape[0])

        def arguments(piece: tuple[int, int]) -> tuple[int, NDArray[np.float64], int, int]:
            return chairs[piece[0]], angles[piece[1] : piece[1] + CHUNK], image_size, supersample

        if workers == 1 or len(pieces) < 2 * workers:  # not worth starting processes
            for piece in pieces:
                write(piece, render_chunk(*arguments(piece)))
            return
        pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
        try:
            running: dict[Future[NDArray[np.uint8]], tuple[int, int]] = {}
            waiting = iter(pieces)
            while True:
                # A few pieces ahead of the workers, and no more: finished images do not pile up in memory.
                for piece in waiting:
                    running[pool.submit(render_chunk, *arguments(piece))] = piece
                    if len(running) >= 3 * workers:
                        break
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    write(running.pop(future), future.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Ctrl-C is the parent's business; a worker ends when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
