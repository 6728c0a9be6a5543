"""Pack the chair models of Debian's `sweethome3d-furniture` into the asset that normscape ships.

    sudo apt-get install sweethome3d-furniture
    python infra/assets/pack_chairs.py [--source /usr/share/sweethome3d/furniture] [--out platform/normscape/datasets/assets]

Writes `chairs.npz` (format: see `normscape/datasets/chairs.py`) and `CHAIRS_ATTRIBUTION.md`. Needs NumPy and Pillow.
The same input gives the same bytes.

A model is a Wavefront OBJ with its MTL inside a `.sh3f` zip, whose catalogue file gives title, author, size in centimetres and
`modelRotation`. Rotation and size are applied, polygons are cut into triangles, and every triangle gets one colour: the
material's diffuse colour, or its patch of the texture, averaged.
"""

from __future__ import annotations

import argparse
import io
import posixpath
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PACKAGE = "sweethome3d-furniture 1.8-1 (Debian)"
CC_BY = ("CC-BY-3.0", "https://creativecommons.org/licenses/by/3.0/")
CC_BY_US = ("CC-BY-3.0-US", "https://creativecommons.org/licenses/by/3.0/us/")
CC_0 = ("CC0-1.0", "https://creativecommons.org/publicdomain/zero/1.0/")
PUBLIC_DOMAIN = ("Public Domain Mark 1.0", "https://creativecommons.org/publicdomain/mark/1.0/")
SCOPIA_AUTHORS = "Scopia Visual Interfaces Systems, s.l."
ETEKS_AUTHORS = "Emmanuel Puybaret / eTeks and Scopia Visual Interfaces Systems, s.l."


@dataclass(frozen=True)
class Collection:
    """One `.sh3f` file: the prefix of its chairs' names, its licence and web page, and the model folders to take."""

    file: str
    prefix: str
    licence: tuple[str, str]
    link: str
    models: str


# Seats for one with a backrest, each looked at: no benches, sofas, deck chairs and loungers, no wheelchair, no stools without
# a back (cc0 foldingChair is one in spite of its name; KatorLegaz bar-stool has a back).
COLLECTIONS = (
    Collection(
        "BlendSwap-CC-0",
        "cc0",
        CC_0,
        "http://www.blendswap.com",
        "armchair oakChair plasticChair sillaBlanca armchair2 chair modernArmchair antiqueChair chairWithCushion chair2 "
        "osakaChair winchesterArmchair designChair thonet",
    ),
    Collection(
        "BlendSwap-CC-BY",
        "ccby",
        CC_BY,
        "http://www.blendswap.com",
        "cafe_set_mota_chair cafe_set_tonon_chair chairWithCushion childChair ella_chair_f leaf_chair armchair1 fotel classSeat "
        "foldingChair plaidChair armChair2 kitchenChair chair3 chair4",
    ),
    Collection(
        "KatorLegaz",
        "katorlegaz",
        CC_BY_US,
        "http://www.katorlegaz.com",
        "cafe-chair mid-century-chair bar-stool dining-chair office-chair",
    ),
    Collection(
        "Scopia",
        "scopia",
        CC_BY,
        "http://www.scopia.es",
        "ext_chair silla_teca armchair3 armchair armchair1 chair3 chair4 chair office_chair tubular_chair armchair2 bar_chair "
        "kids_desk_chair modern_armchair plastic_chair white_kitchen_chair baby_high_chair children_chair rattanArmchair "
        "ryokanChair",
    ),
)


@dataclass(frozen=True)
class Chair:
    """One packed chair. vertices (V, 3) centimetres, y up, front towards +z; faces (F, 3); colours uint8 (F, 3)."""

    name: str
    title: str
    author: str
    licence: tuple[str, str]
    source: str
    link: str
    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    colours: NDArray[np.uint8]


def read_catalogue(archive: zipfile.ZipFile) -> dict[str, dict[str, str]]:
    """Model folder -> catalogue entry (name, creator, width, depth, height, modelRotation, ...)."""
    entries: dict[str, dict[str, str]] = {}
    for line in archive.read("PluginFurnitureCatalog.properties").decode("latin-1").splitlines():
        match = re.match(r"\s*(\w+)#(\d+)\s*=\s*(.*)", line)
        if match:
            entries.setdefault(match[2], {})[match[1]] = match[3].strip()
    return {posixpath.basename(posixpath.dirname(e["model"])): e for e in entries.values() if "model" in e}


def read_materials(archive: zipfile.ZipFile, path: str) -> dict[str, tuple[NDArray[np.float64], Image.Image | None]]:
    """Material name -> (diffuse colour in 0..1, texture or None)."""
    materials: dict[str, tuple[NDArray[np.float64], Image.Image | None]] = {}
    name = ""
    for line in archive.read(path).decode("latin-1").splitlines():
        key, _, rest = line.strip().partition(" ")
        if key == "newmtl":
            name = rest.strip()
            materials[name] = (np.full(3, 0.8), None)
        elif key == "Kd":
            materials[name] = (np.array([float(x) for x in rest.split()[:3]]), materials[name][1])
        elif key == "map_Kd":
            texture = posixpath.join(posixpath.dirname(path), rest.strip())
            if texture in archive.namelist():  # a few MTL files name textures that the collection leaves out
                materials[name] = (materials[name][0], Image.open(io.BytesIO(archive.read(texture))))
    return materials


def blurred(texture: Image.Image, cells: int = 64) -> NDArray[np.float64]:
    """The texture averaged to cells x cells, transparent pixels left out: (cells, cells, 3) in 0..1, row 0 at v = 1."""
    rgba = np.asarray(texture.convert("RGBA"), dtype=np.float64) / 255.0
    alpha = rgba[..., 3:]
    premultiplied = np.concatenate([rgba[..., :3] * alpha, alpha], axis=-1).astype(np.float32)
    channels = [Image.fromarray(premultiplied[..., c]).resize((cells, cells), Image.Resampling.BOX) for c in range(4)]
    small = np.stack([np.asarray(channel, dtype=np.float64) for channel in channels], axis=-1)
    mean = premultiplied[..., :3].sum((0, 1)) / max(float(alpha.sum()), 1e-6)
    opaque = small[..., 3:] > 0.05
    return np.where(opaque, small[..., :3] / np.maximum(small[..., 3:], 1e-6), mean)


def read_model(archive: zipfile.ZipFile, path: str) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.uint8]]:
    """Vertices (V, 3), triangles (F, 3) and their colours (F, 3) of an OBJ file."""
    points: list[list[float]] = []
    texture_points: list[list[float]] = []
    triangles: list[tuple[int, int, int]] = []
    triangle_uv: list[tuple[int, int, int]] = []
    triangle_material: list[str] = []
    materials: dict[str, tuple[NDArray[np.float64], Image.Image | None]] = {}
    material = ""
    text = archive.read(path).decode("latin-1").replace("\\\r\n", " ").replace("\\\n", " ")
    for line in text.splitlines():
        key, _, rest = line.strip().partition(" ")
        if key == "v":
            points.append([float(x) for x in rest.split()[:3]])
        elif key == "vt":
            texture_points.append([float(x) for x in rest.split()[:2]])
        elif key == "mtllib":
            materials |= read_materials(archive, posixpath.join(posixpath.dirname(path), rest.strip()))
        elif key == "usemtl":
            material = rest.strip()
        elif key == "f":
            corners = [corner.split("/") for corner in rest.split()]
            vertex = [_index(c[0], len(points)) for c in corners]
            uv = [_index(c[1], len(texture_points)) if len(c) > 1 and c[1] else -1 for c in corners]
            for a, b, c in cut_polygon(np.array([points[i] for i in vertex])):
                triangles.append((vertex[a], vertex[b], vertex[c]))
                triangle_uv.append((uv[a], uv[b], uv[c]))
                triangle_material.append(material)
    colours = np.zeros((len(triangles), 3))
    uv_index = np.array(triangle_uv)
    uv_points = np.array([*texture_points, [0.0, 0.0]])
    material_of = np.array(triangle_material)
    for name in np.unique(material_of):
        rows = np.flatnonzero(material_of == name)
        diffuse, texture = materials[str(name)]
        colours[rows] = diffuse if texture is None else _texture_colours(blurred(texture), uv_points, uv_index[rows])
    return np.array(points), np.array(triangles), np.rint(colours.clip(0, 1) * 255).astype(np.uint8)


def cut_polygon(points: NDArray[np.float64]) -> list[tuple[int, int, int]]:
    """Cut a flat polygon (P, 3), concave ones included, into P - 2 triangles by clipping ears; returns places in `points`."""
    if len(points) <= 3:
        return [(0, 1, 2)] if len(points) == 3 else []
    edges = np.roll(points, -1, axis=0) - points
    turns = np.cross(edges, np.roll(edges, -1, axis=0))
    normal = np.cross(points - points[0], np.roll(points, -1, axis=0) - points[0]).sum(axis=0)  # twice the area
    if np.all(turns @ normal >= 0):  # convex
        return [(0, i, i + 1) for i in range(1, len(points) - 1)]
    axis = int(np.abs(normal).argmax())
    flat = np.delete(points, axis, axis=1) * (1.0, 1.0 if (normal[axis] > 0) != (axis == 1) else -1.0)  # now counter-clockwise
    left = list(range(len(points)))
    triangles = []
    while len(left) > 3:
        ear = next((i for i in range(len(left)) if _is_ear(flat, left, i)), 0)
        triangles.append((left[ear - 1], left[ear], left[(ear + 1) % len(left)]))
        del left[ear]
    return [*triangles, (left[0], left[1], left[2])]


def _is_ear(flat: NDArray[np.float64], left: list[int], i: int) -> bool:
    """Corner i of the remaining polygon is convex, and no other corner lies in its triangle."""
    a, b, c = flat[left[i - 1]], flat[left[i]], flat[left[(i + 1) % len(left)]]

    def side(p: NDArray[np.float64], q: NDArray[np.float64], r: NDArray[np.float64]) -> Any:
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0])

    if side(a, b, c) <= 0:
        return False
    others = flat[left]
    # Corners at the same place as a, b or c (where a hole is joined to the outline) do not count.
    others = others[((others != a).any(axis=1)) & ((others != b).any(axis=1)) & ((others != c).any(axis=1))]
    return not ((side(a, b, others) >= 0) & (side(b, c, others) >= 0) & (side(c, a, others) >= 0)).any()


def _index(text: str, count: int) -> int:
    """OBJ indices start at 1; negative ones count from the end."""
    value = int(text)
    return value - 1 if value > 0 else count + value


def _texture_colours(
    texture: NDArray[np.float64], uv_points: NDArray[np.float64], uv_index: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean texture colour at corners, edge middles and centre of each triangle: (F, 3)."""
    corners = uv_points[uv_index]  # (F, 3, 2)
    weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [1 / 3, 1 / 3, 1 / 3]])
    uv = np.einsum("kc,fcd->fkd", weights, corners) % 1.0
    side = texture.shape[0]
    column = np.minimum((uv[..., 0] * side).astype(int), side - 1)
    row = np.minimum(((1.0 - uv[..., 1]) * side).astype(int), side - 1)
    colours = texture[row, column].mean(axis=1)
    lost = np.any(uv_index < 0, axis=1, keepdims=True)  # corners without a place in the texture
    return np.where(lost, texture.mean(axis=(0, 1)), colours)


def read_licence(archive: zipfile.ZipFile, folder: str, collection: Collection) -> tuple[tuple[str, str], str]:
    """Licence and link of one model: those of the licence file in its folder, else the collection's."""
    for name in archive.namelist():
        if posixpath.dirname(name) == folder and "license" in name.lower():
            text = archive.read(name).decode("latin-1")
            link = re.search(r"https?://www\.blendswap\.com/blends/view/\d+", text)
            url = link[0] if link else ""
            if "creativecommons.org/licenses/by/3.0" in text or "Creative Commons Attribution 3.0" in text:
                return CC_BY, url
            if "publicdomain/mark" in text:
                return PUBLIC_DOMAIN, url
            if "publicdomain/zero" in text or "Creative Commons Zero" in text:
                return CC_0, url
            return collection.licence, url
    return collection.licence, ""


def read_chairs(source: Path) -> Iterator[Chair]:
    """All chairs of COLLECTIONS, in that order."""
    for collection in COLLECTIONS:
        with zipfile.ZipFile(source / f"{collection.file}.sh3f") as archive:
            catalogue = read_catalogue(archive)
            # Scopia's licence file lists the models made by eTeks before those made by Scopia alone.
            eteks_models = set(re.findall(r"^- (\S+)", _eteks_part(archive.read("LICENSE.TXT").decode("latin-1")), re.M))
            for model in collection.models.split():
                entry = catalogue[model]
                path = entry["model"].lstrip("/")
                vertices, faces, colours = read_model(archive, path)
                licence, link = read_licence(archive, posixpath.dirname(path), collection)
                author = entry["creator"]
                if collection.prefix == "scopia":
                    author = ETEKS_AUTHORS if model in eteks_models else SCOPIA_AUTHORS
                elif collection.prefix == "katorlegaz":
                    author = "Andrew Kator & Jennifer Legaz"
                yield Chair(
                    name=f"{collection.prefix}-{_kebab(model)}",
                    title=entry["name"],
                    author=author,
                    licence=licence,
                    source=f"{collection.file}.sh3f: {path}",
                    link=link or collection.link,
                    vertices=_placed(vertices, entry),
                    faces=faces,
                    colours=colours,
                )


def _eteks_part(text: str) -> str:
    return text.split("following models:")[1].split("for all the other models")[0] if "following models:" in text else ""


def _kebab(model: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", model).replace("_", "-").lower()


def _placed(vertices: NDArray[np.float64], entry: dict[str, str]) -> NDArray[np.float64]:
    """Turned by modelRotation and stretched to the catalogue's width, height and depth, centred on the origin."""
    if "modelRotation" in entry:
        vertices = vertices @ np.array([float(x) for x in entry["modelRotation"].split()]).reshape(3, 3).T
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    size = np.array([float(entry[key]) for key in ("width", "height", "depth")])
    return (vertices - (low + high) / 2) / (high - low) * size


def compact(chair: Chair) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint8], NDArray[np.float32]]:
    """Quantised distinct vertices, faces and colours without degenerate or repeated triangles, and (low corner, cm a unit)."""
    used = chair.vertices[np.unique(chair.faces)]
    low, scale = used.min(axis=0), float(np.ptp(used, axis=0).max()) / 65535
    quantised = np.rint((chair.vertices - low) / scale).clip(0, 65535).astype(np.uint16)
    distinct, inverse = np.unique(quantised, axis=0, return_inverse=True)
    faces = inverse.reshape(-1)[chair.faces]
    ordered = np.sort(faces, axis=1)
    keep = (ordered[:, 0] != ordered[:, 1]) & (ordered[:, 1] != ordered[:, 2])
    _, first = np.unique(ordered, axis=0, return_index=True)
    keep &= np.isin(np.arange(len(faces)), first)
    faces, colours = faces[keep], chair.colours[keep]
    order = np.lexsort(faces.T[::-1])  # neighbours in the list share corners: compresses better
    faces, colours = faces[order], colours[order]
    corners, faces_flat = np.unique(faces, return_inverse=True)
    if len(corners) > 65536:
        raise SystemExit(f"{chair.name}: {len(corners)} vertices do not fit uint16 faces")
    return distinct[corners], faces_flat.reshape(-1, 3).astype(np.uint16), colours, np.array([*low, scale], dtype=np.float32)


def write(chairs: list[Chair], out: Path) -> None:
    """Write chairs.npz and CHAIRS_ATTRIBUTION.md into `out`."""
    parts = [compact(chair) for chair in chairs]
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out / "chairs.npz",
        names=np.array([chair.name for chair in chairs]),
        vertices=np.concatenate([p[0] for p in parts]),
        faces=np.concatenate([p[1] for p in parts]),
        colours=np.concatenate([p[2] for p in parts]),
        placement=np.stack([p[3] for p in parts]),
        vertex_start=np.cumsum([0, *(len(p[0]) for p in parts)]),
        face_start=np.cumsum([0, *(len(p[1]) for p in parts)]),
    )
    lines = [
        "# Chair models: authors and licences",
        "",
        f"`chairs.npz` holds {len(chairs)} chair models adapted from {PACKAGE}, the additional furniture of Sweet Home 3D",
        "(<https://www.sweethome3d.com>, catalogues by Emmanuel Puybaret / eTeks). Changes: turned and sized as the catalogue",
        "says, cut into triangles, coordinates quantised, one colour a triangle instead of textures and materials.",
        "Packed by `infra/assets/pack_chairs.py`.",
        "",
        "Licences: "
        + "; ".join(f"{name} <{url}>" for name, url in sorted({c.licence for c in chairs}))
        + ". Where the licence file in a model's folder differs from its collection's, the model's own counts.",
        "",
        "| Name | Title | Author | Licence | Source | Link |",
        "| --- | --- | --- | --- | --- | --- |",
        *(f"| {c.name} | {c.title} | {c.author} | {c.licence[0]} | `{c.source}` | <{c.link}> |" for c in chairs),
    ]
    (out / "CHAIRS_ATTRIBUTION.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("/usr/share/sweethome3d/furniture"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "platform/normscape/datasets/assets")
    arguments = parser.parse_args()
    chairs = list(read_chairs(arguments.source))
    write(chairs, arguments.out)
    size = (arguments.out / "chairs.npz").stat().st_size / 1e6
    print(f"{len(chairs)} chairs, {sum(len(c.faces) for c in chairs)} triangles, {size:.2f} MB: {arguments.out / 'chairs.npz'}")


if __name__ == "__main__":
    main()
