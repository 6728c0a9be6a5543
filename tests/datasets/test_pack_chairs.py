"""The script that packs the chairs, run on a furniture catalogue made here."""

from __future__ import annotations

import importlib.util
import io
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from normscape.datasets import chairs

SCRIPT = Path(__file__).parents[2] / "infra" / "assets" / "pack_chairs.py"

OBJ = """mtllib seat.mtl
v 0 0 0
v 2 0 0
v 2 1 0
v 0 1 0
v 0 0 4
vt 0.1 0.9
vt 0.2 0.9
vt 0.2 0.8
usemtl red
f 1 2 3 4
usemtl cloth
f 1/1 2/2 5/3
f -5 -4 -3
"""
MTL = "newmtl red\nKd 1 0 0\nnewmtl cloth\nKd 1 1 1\nmap_Kd cloth.png\n"
CATALOGUE = """id#1=x
name#1=Chair
creator#1=Some Body
model#1=/things/seat/seat.obj
width#1=40
height#1=90
depth#1=50
modelRotation#1=0 0 1 0 1 0 -1 0 0
"""


@pytest.fixture(scope="module")
def pack() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pack_chairs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack_chairs"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def packed(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with the asset made of one chair."""
    texture = Image.new("RGB", (64, 64), (0, 0, 255))
    content = io.BytesIO()
    texture.save(content, "PNG")
    with zipfile.ZipFile(tmp_path / "Things.sh3f", "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", CATALOGUE)
        archive.writestr("LICENSE.TXT", "")
        archive.writestr("things/seat/seat.obj", OBJ)
        archive.writestr("things/seat/seat.mtl", MTL)
        archive.writestr("things/seat/cloth.png", content.getvalue())
        archive.writestr(
            "things/seat/1 - LICENSE.html", "http://www.blendswap.com/blends/view/1 creativecommons.org/licenses/by/3.0/"
        )
    monkeypatch.setattr(pack, "COLLECTIONS", (pack.Collection("Things", "things", pack.CC_0, "http://example.org", "seat"),))
    pack.write(list(pack.read_chairs(tmp_path)), tmp_path / "out")
    return tmp_path / "out"


def test_output_is_what_the_package_reads(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packed file loads through `load_chair`: the catalogue's size, colours of material and texture, no repeated triangle."""
    with np.load(packed / "chairs.npz", allow_pickle=False) as arrays:
        data = dict(arrays)
    monkeypatch.setattr(chairs, "_asset", lambda: ("digest", data))
    assert chairs.chair_names() == ("things-seat",)
    chair = chairs.load_chair(0)
    assert np.ptp(chair.vertices, axis=0) == pytest.approx([40, 90, 50], abs=0.01)
    assert len(chair.faces) == 3  # the square's two, the cloth; the last face repeats one of the square's
    assert sorted(map(tuple, chair.colours.tolist())) == [(0, 0, 1), (1, 0, 0), (1, 0, 0)]
    # Its long axis was z, towards the viewer; modelRotation turned it to +x: the corner far along z is now at the right.
    assert chair.vertices[np.argmax(chair.vertices[:, 0]), 1] == pytest.approx(-45, abs=0.01)


def test_licence_of_the_model_counts_before_the_collection(packed: Path) -> None:
    """The collection is CC0, the licence file in the model's folder says CC-BY: the attribution says CC-BY."""
    row = (packed / "CHAIRS_ATTRIBUTION.md").read_text().splitlines()[-1]
    assert "| Some Body | CC-BY-3.0 |" in row
    assert "blends/view/1" in row


def test_same_input_same_bytes(pack: ModuleType, packed: Path, tmp_path: Path) -> None:
    pack.write(list(pack.read_chairs(tmp_path)), tmp_path / "again")
    assert (tmp_path / "again" / "chairs.npz").read_bytes() == (packed / "chairs.npz").read_bytes()


def test_concave_polygons_are_cut_inside_their_outline(pack: ModuleType) -> None:
    """An L-shaped face, in either direction and any plane, becomes triangles with the area of the L."""
    outline = np.array([[0, 0], [2, 0], [2, 1], [1, 1], [1, 3], [0, 3]], dtype=float)
    for axes in ((0, 1), (1, 2), (2, 0)):
        for flip in (1, -1):
            points = np.zeros((6, 3))
            points[:, axes] = outline[::flip]
            triangles = pack.cut_polygon(points)
            areas = [np.linalg.norm(np.cross(points[b] - points[a], points[c] - points[a])) / 2 for a, b, c in triangles]
            assert len(triangles) == 4
            assert sum(areas) == pytest.approx(4.0)
