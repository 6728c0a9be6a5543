"""A real browser for tests of pages: headless Chromium, driven by Selenium; tests skip where one of the two is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

AXE = Path(__file__).parent / "assets" / "axe.min.js"
QUIET = ["--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += [
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
    "--force-prefers-reduced-motion",
    "--window-size=1200,1000",
]
WEBGL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
"""WebGL without a graphics card."""
NO_WEBGL = ["--disable-gpu", "--disable-3d-apis"]
PATIENCE_S = 60.0


@contextmanager
def chromium(profile: Path, *, webgl: bool = True) -> Iterator[WebDriver]:
    """A browser with an empty profile, which records its console and its requests.

    Args:
        profile: folder that does not exist.
        webgl: whether pages may draw in three dimensions.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    driver_program = shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in [*QUIET, *(WEBGL if webgl else NO_WEBGL), f"--user-data-dir={profile}"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_program))
    try:
        # a window that does not have the focus of the machine tells its pages of no focus either
        driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
        yield driver
    finally:
        driver.quit()


def visit(driver: WebDriver, address: str | Path) -> None:
    """Open a page, and forget what was recorded before."""
    driver.get("about:blank")  # the page before is gone, also where it is the same one
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    driver.get(address.as_uri() if isinstance(address, Path) else address)
    wait(driver, lambda _: driver.execute_script("return document.readyState") == "complete", "the page was never loaded")


def wait(driver: WebDriver, condition: Callable[[WebDriver], Any], about: str, *, seconds: float = PATIENCE_S) -> Any:
    """What a condition gives as soon as it gives something."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, seconds, poll_frequency=0.1).until(condition, about)


def complaints(driver: WebDriver) -> list[str]:
    """Errors on the console since the page was opened."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def requested(driver: WebDriver) -> list[str]:
    """Addresses that the page asked for since it was opened, apart from what lies in it."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    addresses = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # chrome: is the browser's own new tab, which may still be loading while a page is opened
    return [address for address in addresses if not address.startswith(("data:", "blob:", "chrome:", "chrome-untrusted:"))]


def barriers(driver: WebDriver) -> list[str]:
    """Serious and critical findings of axe-core on the page as it stands: rule, and the first element."""
    driver.execute_script(AXE.read_text(encoding="utf-8"))
    script = (
        "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then(done, (e) => done({error: String(e)}))"
    )
    driver.set_script_timeout(120)
    found = driver.execute_async_script(script)
    assert "error" not in found, found["error"]
    severe = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]} ({one['nodes'][0]['failureSummary']})" for one in severe]
