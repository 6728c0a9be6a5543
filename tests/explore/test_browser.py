"""The page in a real browser: the slider, the comparison, dropped files, and what people who cannot see it are told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from normscape.explore.trained import Trained
from tests.browser import barriers, chromium, complaints, requested, visit, wait
from tests.explore.visitors import MAP_SECONDS, Serve

PIXELS = """const c = arguments[0]; return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)
  .filter((_, i) => i % 4 < 3)"""
SLIDE = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
DROP = """const data = new DataTransfer(), bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0));
  data.items.add(new File([bytes], arguments[2]));
  arguments[0].dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}))"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser for all tests of this file; servers have ports, and so cookies, of their own."""
    with chromium(tmp_path_factory.mktemp("browser") / "profile") as found:
        yield found


def pixels(driver: Any, canvas: Any) -> list[int]:
    """Red, green and blue of every pixel."""
    return list(driver.execute_script(PIXELS, canvas))


def open_page(driver: Any, address: str) -> None:
    """Open the page, and wait until its first picture is there."""
    visit(driver, address)
    shown = "#sides canvas[aria-label*=' at ']"
    wait(driver, lambda _: driver.find_elements("css selector", shown), "no picture")


def picture_at(driver: Any, canvas: Any, text: str) -> list[int]:
    """A canvas's pixels, once it says that it shows something and nothing is under way."""
    wait(driver, lambda _: text in canvas.get_attribute("aria-label") and not driver.find_element("id", "loading").text, text)
    return pixels(driver, canvas)


def test_the_slider_changes_the_picture(driver: Any, chairs: Trained, serve: Serve) -> None:
    """And back again gives the first picture; keys move it, too; nothing but the server is asked, and nothing complains."""
    site = serve(chairs)
    open_page(driver, site.listening.url)
    canvas = driver.find_element("css selector", "canvas")
    slider = driver.find_element("id", "knob-angle")
    first = picture_at(driver, canvas, "angle 45 degrees")
    driver.execute_script(SLIDE, slider, 0)
    second = picture_at(driver, canvas, "angle 0 degrees")
    assert len(set(first)) > 10
    assert first != second
    driver.execute_script(SLIDE, slider, 45)
    assert picture_at(driver, canvas, "angle 45 degrees") == first
    slider.send_keys("\ue014")  # the right arrow key
    picture_at(driver, canvas, "angle 46 degrees")
    assert not driver.find_element("id", "scans").is_displayed()  # chairs have no scans
    own = f"http://127.0.0.1:{site.port}/"
    assert [address for address in requested(driver) if not address.startswith(own)] == []
    assert complaints(driver) == []
    assert barriers(driver) == []


def test_a_link_from_elsewhere_leads_back_to_the_same_session(driver: Any, chairs: Trained, serve: Serve) -> None:
    """Somebody who gets the address in a message opens it twice, and finds the scans again; the token leaves the address bar."""
    site = serve(chairs, token="a-token-that-is-long-enough")
    open_page(driver, site.listening.url)
    name = f"normscape-explore-{site.port}"
    session = driver.get_cookie(name)["value"]
    visit(driver, f"data:text/html,<a href='{site.listening.url}'>the page</a>")
    driver.find_element("tag name", "a").click()
    wait(driver, lambda _: driver.current_url == f"http://127.0.0.1:{site.port}/", "the token stays")
    assert driver.get_cookie(name)["value"] == session


def test_two_subjects_and_their_difference(driver: Any, chairs: Trained, serve: Serve) -> None:
    """One slider moves both; the third picture is the difference of what is shown; a subject of the run comes with its image."""
    open_page(driver, serve(chairs).listening.url)
    driver.find_element("id", "compare").click()
    one, two, difference = driver.find_elements("css selector", "#sides canvas")
    wait(driver, lambda _: len({canvas.rect["y"] for canvas in (one, two, difference)}) == 1, "pictures at different heights")
    driver.execute_script(SLIDE, driver.find_element("id", "knob-angle"), 10)
    first, second = (picture_at(driver, canvas, "angle 10 degrees") for canvas in (one, two))
    third = picture_at(driver, difference, "angle 10 degrees")
    assert first != second
    assert third == [abs(a - b) for a, b in zip(first, second, strict=True)]
    for number in driver.find_elements("css selector", "#sides input[type=number]"):
        number.clear()
        number.send_keys("7")
    wait(driver, lambda _: "0.0 %" in difference.get_attribute("aria-label"), "the same subject differs from itself")
    who = driver.find_elements("css selector", "#sides select")[1]
    option = who.find_elements("tag name", "option")[1]
    option.click()
    picture_at(driver, two, option.text)
    original = driver.find_elements("css selector", "#sides img.original")[1]
    wait(driver, lambda _: original.is_displayed() and int(original.get_attribute("naturalWidth")) == 8, "no original")
    assert complaints(driver) == []
    assert barriers(driver) == []


def test_a_wrong_file_gets_its_message_and_the_form_stays(driver: Any, brains: Trained, serve: Serve, tmp_path: Path) -> None:
    """One that the page itself sees through, and one that only the server does; what was typed is still there."""
    site = serve(brains)
    open_page(driver, site.listening.url)
    wait(driver, lambda _: driver.find_element("id", "scans").is_displayed(), "no place for scans")
    age, said = driver.find_element("id", "age"), driver.find_element("id", "scan-problem")
    drop = driver.find_element("id", "drop")
    driver.execute_script(DROP, drop, "bm8gc2Nhbg==", "head.nii")
    wait(driver, lambda _: "Give the age" in said.text, "no age was asked for")
    age.send_keys("63")
    driver.execute_script(DROP, drop, "bm8gc2Nhbg==", "notes.txt")
    wait(driver, lambda _: said.text == "notes.txt: expected a NIfTI file, .nii or .nii.gz", "a text is no scan")
    driver.execute_script(DROP, drop, "bm8gc2Nhbg==", "head <b>.nii")
    wait(driver, lambda _: said.text == "head <b>.nii: expected a NIfTI file, found something else", "the server did not look")
    assert age.get_attribute("value") == "63"
    assert list(site.listening.storage.folder.iterdir()) == []
    assert driver.find_elements("css selector", "#list li") == []
    assert [message for message in complaints(driver) if "422" not in message] == []
    assert barriers(driver) == []


@pytest.mark.slow
def test_a_dropped_scan_gets_its_map(driver: Any, brains: Trained, serve: Serve, scan_file: Path) -> None:
    """With its progress, its picture, its files and its page, whose viewer runs although the page may ask for nothing."""
    site = serve(brains)
    open_page(driver, site.listening.url)
    wait(driver, lambda _: driver.find_element("id", "scans").is_displayed(), "no place for scans")
    wait(
        driver, lambda _: "age 50 years" in driver.find_element("css selector", "canvas").get_attribute("aria-label"), "no brain"
    )
    driver.find_element("id", "age").send_keys("63")
    driver.find_element("css selector", "#strip option[value=none]").click()
    driver.find_element("id", "file").send_keys(str(scan_file))
    driver.find_element("id", "send").click()
    seen: set[str] = set()

    def finished(_: Any) -> bool:
        rows = driver.find_elements("css selector", "#list li")
        seen.update(row.get_attribute("data-state") for row in rows)
        return bool(rows) and rows[0].get_attribute("data-state") in ("finished", "failed")

    wait(driver, finished, "no map", seconds=MAP_SECONDS)
    row = driver.find_element("css selector", "#list li")
    assert row.get_attribute("data-state") == "finished", row.text
    assert seen & {"queued", "running"}
    assert re.search(r"Done in \d+ \w+: \d+ regions? above \d", row.text)
    overlay = row.find_element("css selector", ".overlay")
    wait(driver, lambda _: int(overlay.get_attribute("naturalWidth")) > 50, "no picture")
    assert "anomaly map" in row.find_element("css selector", ".files").text
    driver.execute_script("document.querySelector('.whole summary').click()")
    frame = wait(driver, lambda _: row.find_elements("tag name", "iframe"), "no page")[0]
    driver.execute_script("arguments[0].scrollIntoView()", frame)
    driver.switch_to.frame(frame)
    viewer = wait(driver, lambda _: driver.find_elements("css selector", ".viewer"), "no viewer")[0]
    driver.execute_script("arguments[0].scrollIntoView()", viewer)
    wait(driver, lambda _: viewer.get_attribute("data-state") == "ready", "the viewer does not run")
    driver.switch_to.default_content()
    assert complaints(driver) == []
    assert barriers(driver) == []
    # Not by the mouse: where a frame was before the page scrolled, a click may still go to the frame.
    driver.execute_script("arguments[0].click()", row.find_element("css selector", ".delete"))
    wait(driver, lambda _: not driver.find_elements("css selector", "#list li"), "still there")
    assert list(site.listening.storage.folder.iterdir()) == []
