"""Volumes in a page: what is packed comes back, and a real browser shows the layers and moves the crosshair."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest

from normscape.report import viewer
from normscape.report.page import template_environment
from tests.browser import chromium, complaints, requested, visit, wait

nib = pytest.importorskip("nibabel")
AFFINE = np.array([[0.0, 0.0, 2.0, -20.0], [0.0, 2.0, 0.0, -30.0], [2.0, 0.0, 0.0, -10.0], [0.0, 0.0, 0.0, 1.0]])
"""Index (z, y, x) to RAS millimetres, 2 mm a voxel."""
PEAK = (6, 10, 14)
"""Voxel z, y, x of the highest value: x 8, y -10, z 2 mm."""
PAGE = """{% from "viewer.html" import viewer, viewer_style, viewer_scripts %}<!DOCTYPE html><html lang="en"><head><title>t</title>
<style>{{ style | safe }}{{ viewer_style() }}</style></head><body><main>{{ viewer(view) }}
<table><tbody><tr data-viewer="v" data-scene="one" data-mm="8,-10,2" data-about="Region 1"><th scope="row">1</th></tr>
<tr data-viewer="v" data-scene="two" data-mm="2,-8,0"><th scope="row">2</th></tr></tbody></table></main>{{ viewer_scripts() }}</body></html>"""


def volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scan in [-1, 1], anomaly map and brain mask, (Z, Y, X)."""
    z, y, x = np.mgrid[:14, :20, :24]
    mask = ((z - 6) / 5) ** 2 + ((y - 10) / 8) ** 2 + ((x - 12) / 9) ** 2 <= 1
    scan = np.where(mask, np.sin(x / 3) * np.cos(y / 4), 0).astype(np.float32)
    apart = sum((axis - at) ** 2 for axis, at in zip((z, y, x), PEAK, strict=True))
    return scan, np.where(mask, np.exp(-apart / 8.0), 0).astype(np.float32), mask


def scene(name: str = "one") -> viewer.Scene:
    """A scene with all four layers."""
    scan, anomaly, mask = volumes()
    layers = [
        viewer.scan_layer(scan, mask, AFFINE),
        viewer.reconstruction_layer(-scan, mask, AFFINE),
        viewer.anomaly_layer(anomaly, mask, AFFINE, threshold=0.4),
        viewer.lesion_layer(anomaly > 0.8, mask, AFFINE, label="Blot"),
    ]
    return viewer.Scene(name, f"Scan {name}", layers, (8.0, -10.0, 2.0) if name == "one" else None)


def test_a_packed_volume_comes_back(tmp_path: Path) -> None:
    """Values to a rounding error, the outside below the lowest, every voxel at its place in millimetres; cut to the brain."""
    scan, _, mask = volumes()
    data = viewer.nifti(scan, mask, AFFINE, -1.0, 1.0)
    assert data == viewer.nifti(scan, mask, AFFINE, -1.0, 1.0)
    path = tmp_path / "v.nii.gz"
    path.write_bytes(data)
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    back = np.asarray(image.dataobj).transpose(2, 1, 0)
    assert back.size < scan.size
    for voxel in np.argwhere(np.isfinite(back)):
        mm = image.affine @ [*voxel[::-1], 1.0]
        z, y, x = np.linalg.solve(AFFINE, mm)[:3].round().astype(int)
        if mask[z, y, x]:
            assert abs(back[tuple(voxel)] - scan[z, y, x]) <= 1 / 254 + 1e-6
        else:
            assert back[tuple(voxel)] < -1
    assert np.allclose(image.get_qform(), image.affine, atol=1e-4)


def test_a_layer_without_values_is_packed_too() -> None:
    """An empty lesion keeps the brain's box and is 0 throughout."""
    _, _, mask = volumes()
    layer = viewer.lesion_layer(np.zeros(mask.shape), mask, AFFINE, label="Lesion")
    raw = gzip.decompress(base64.b64decode(layer.data))
    assert set(raw[352:]) == {0}
    assert len(raw) - 352 == np.prod([part.stop - part.start for part in viewer.brain_box(mask)])


def build(folder: Path, view: viewer.Viewer) -> Path:
    """A page with nothing but a viewer and a table."""
    path = folder / "viewer.html"
    environment: jinja2.Environment = template_environment()
    path.write_text(environment.from_string(PAGE).render(view=view), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("viewer"), viewer.Viewer("v", [scene("one"), scene("two")]))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("browser") / "profile") as found:
        yield found


def ready(driver: Any, page: Path) -> Any:
    """The page's viewer, as soon as it shows its volumes."""
    visit(driver, page)
    element = driver.find_element("id", "v")
    driver.execute_script("arguments[0].scrollIntoView()", element)
    wait(driver, lambda _: element.get_attribute("data-state") == "ready", "the viewer never got ready")
    return element


def colours(driver: Any) -> np.ndarray:
    """Red, green and blue of the canvas as it is drawn now, (pixels, 3)."""
    script = """const done = arguments[0]; normscapeViewer.open(document.getElementById("v")).then((viewer) => {
      viewer.nv.drawScene();
      const gl = viewer.nv.gl, w = gl.drawingBufferWidth, h = gl.drawingBufferHeight, all = new Uint8Array(4 * w * h);
      gl.readPixels(0, 0, w, h, gl.RGBA, gl.UNSIGNED_BYTE, all);
      const seen = {};
      for (let i = 0; i < all.length; i += 4) { const key = all.slice(i, i + 3).join(); seen[key] = (seen[key] ?? 0) + 1; }
      done(seen);
    });"""
    seen = driver.execute_async_script(script)
    return np.array([[*map(int, key.split(",")), count] for key, count in seen.items()])


def reddish(pixels: np.ndarray) -> int:
    """Number of pixels in the colours of the anomaly map."""
    red, green, blue, count = pixels.T
    return int(count[(red > green + 40) & (red > blue + 90)].sum())


def test_a_browser_shows_the_layers(driver: Any, page: Path) -> None:
    """Scan and map are drawn; the map goes away with its box and shrinks with its threshold; nothing is asked of a network."""
    element = ready(driver, page)
    before = colours(driver)
    assert len(before) > 50
    assert reddish(before) > 200
    names = [legend.text for legend in element.find_elements("tag name", "legend")]
    assert names == ["Scan", "Reconstruction", "Anomaly map", "Blot"]
    shown = [box.is_selected() for box in element.find_elements("css selector", "input[type=checkbox]")]
    assert shown == [True, False, True, True]
    driver.find_element("id", "v-lesion-shown").click()
    whole = reddish(colours(driver))
    slider = driver.find_element("id", "v-anomaly-threshold")
    driver.execute_script("arguments[0].value = 0.6; arguments[0].dispatchEvent(new Event('input'))", slider)
    assert 0 < reddish(colours(driver)) < whole
    driver.find_element("id", "v-anomaly-shown").click()
    assert reddish(colours(driver)) == 0
    assert complaints(driver) == []
    assert requested(driver) == [page.as_uri()]


def test_a_row_moves_the_crosshair(driver: Any, page: Path) -> None:
    """A click, and Enter on the row's button, move the crosshair and say where; a row of the other scan shows that scan."""
    from selenium.webdriver.common.keys import Keys

    element = ready(driver, page)
    said = driver.find_element("id", "v-place")
    canvas = element.find_element("tag name", "canvas")
    canvas.send_keys(Keys.ARROW_LEFT)
    wait(driver, lambda _: "x 10, y −10, z 2 mm" in said.text, "an arrow key did not move the crosshair")
    driver.find_element("css selector", "tr[data-scene=one]").click()
    wait(driver, lambda _: said.text == "Region 1: x 8, y −10, z 2 mm · anomaly map 1.00 · in: blot", "a click did not move it")
    assert element.get_attribute("data-place") == "8.0,-10.0,2.0"
    driver.find_element("css selector", "tr[data-scene=two] button").send_keys(Keys.ENTER)
    wait(driver, lambda _: "x 2, y −8, z 0 mm" in said.text, "Enter did not move it")
    assert element.get_attribute("data-scene") == "two"
    assert driver.find_element("id", "v-scene").get_attribute("value") == "two"
    assert complaints(driver) == []


def test_without_webgl_a_sentence_stands_there(page: Path, tmp_path: Path) -> None:
    """The pictures are pointed to, rows stay text, and nothing is reported as an error."""
    with chromium(tmp_path / "profile", webgl=False) as driver:
        visit(driver, page)
        element = driver.find_element("id", "v")
        wait(driver, lambda _: element.get_attribute("data-state") == "missing", "the viewer did not notice")
        assert "needs JavaScript and WebGL 2. The pictures on this page" in element.text
        assert not driver.find_elements("css selector", "tr button")
        assert not element.find_element("tag name", "canvas").is_displayed()
        assert complaints(driver) == []
