"""Pictures of pages in a real browser: the explorer, and the view of volumes on the page of a run of brains."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from infra.docs.pictures.sheet import save_picture
from normscape.errors import UserError
from tests.browser import chromium, visit, wait

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

ROOT = Path(__file__).resolve().parents[3]
CHAIRS = ROOT / "runs" / "chairs-cpu"
MARGIN = 12
"""Pixels around what is shown."""


def explorer(path: Path) -> None:
    """docs/explorer.md: two generated chairs at one angle, and their difference.

    Raises:
        UserError: the run that is shown is not there; a shorter training gives no chairs worth a look.
    """
    from normscape.explore.server import Settings, listening
    from normscape.explore.trained import load_run
    from tests.explore.visitors import running

    if not CHAIRS.is_dir():
        raise UserError(f"{CHAIRS.relative_to(ROOT)} is not there; `normscape run configs/chairs/cpu.yaml` makes it")
    with (
        listening(load_run(CHAIRS), Settings("127.0.0.1", 0, None, 1 << 20, 1, None)) as page,
        running(page),
        browser() as driver,
    ):
        visit(driver, page.url)
        wait(driver, lambda _: driver.find_elements("css selector", "#sides canvas[aria-label*=' at ']"), "no picture")
        driver.find_element("id", "compare").click()
        wait(driver, lambda _: "%" in driver.find_element("css selector", "#difference figcaption").text, "no difference")
        wait(driver, lambda _: not driver.find_element("id", "loading").text, "pictures are missing")
        save_picture(shot(driver, "#look"), path)


def viewer(path: Path) -> None:
    """docs/start.md: a test scan with a blot, and its map by the notebook's system."""
    from infra.docs.pictures.drawn import notebook
    from normscape.report.page import build_page
    from normscape.stages.core import run_stages

    space = notebook()
    stages = run_stages(space["config"], space["WORK"] / "runs", last="brains").stages
    with tempfile.TemporaryDirectory() as folder, browser() as driver:
        visit(driver, build_page(space["config"], stages, Path(folder)))
        element = driver.find_element("id", "brain-viewer")
        driver.execute_script("arguments[0].scrollIntoView()", element)
        wait(driver, lambda _: element.get_attribute("data-state") == "ready", "the viewer never got ready")
        save_picture(shot(driver, "#brain-viewer"), path)


@contextmanager
def browser() -> Iterator[WebDriver]:
    """The browser of the tests, with a window that is high enough for one part of a page."""
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder) / "profile") as driver:
        driver.set_window_size(1060, 1500)
        yield driver


def shot(driver: WebDriver, what: str) -> Image.Image:
    """An element as it is drawn, with a margin.

    Args:
        driver: on the page.
        what: selector of the element.
    """
    script = """const element = document.querySelector(arguments[0]);
      element.scrollIntoView({block: "center"});
      const place = element.getBoundingClientRect();
      return [place.left, place.top, place.right, place.bottom].map(Math.round);"""
    left, top, right, bottom = driver.execute_script(script, what)
    whole = Image.open(io.BytesIO(driver.get_screenshot_as_png()))
    return whole.crop(
        (max(0, left - MARGIN), max(0, top - MARGIN), min(whole.width, right + MARGIN), min(whole.height, bottom + MARGIN))
    )
