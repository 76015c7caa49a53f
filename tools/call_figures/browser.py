"""A real Chromium, and pages that watch the call from within."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, Page, sync_playwright

FLAGS: Final = (
    "--no-sandbox",  # containers run as root
    "--autoplay-policy=no-user-gesture-required",
    # Media between two processes of a machine that may have no network but loopback:
    "--allow-loopback-in-peer-connection",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
)
PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome")
WATCH: Final = Path(__file__).with_name("watch.js")


def program() -> str:
    """The browser that is installed.  RuntimeError where none is."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        raise RuntimeError("needs a browser: apt-get install chromium")
    return found


def version() -> str:
    """What the browser calls itself."""
    said = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True)
    return said.stdout.strip()


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A headless Chromium with an empty profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), headless=True, args=[*FLAGS, *flags])
        yield browser
        browser.close()


def film_flags(film: Path) -> tuple[str, ...]:
    """What lets Chromium take a film for its camera, and not ask."""
    return (
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={film}",
    )


def observed(browser: Browser) -> Page:
    """An empty page in which ``callFigures`` (`watch.js`) will be there before any script of a page."""
    page = browser.new_context(bypass_csp=True).new_page()
    page.add_init_script(path=WATCH)
    return page


def watch(page: Page, address: str, seconds: float = 60.0) -> None:
    """Open the daemon's page and wait until it shows pictures."""
    page.goto(address)
    counted = "async () => ((await callFigures.counted())?.framesDecoded ?? 0) > 0"
    for _ in range(round(seconds / 0.1)):
        if page.evaluate(counted):
            return
        page.wait_for_timeout(100)
    raise RuntimeError(f"no picture came within {seconds:g} s")


def lend_camera(page: Page) -> None:
    """Give the daemon the camera of the page, and agree to what that means."""
    page.get_by_role("button", name="Use my camera").click()
    page.get_by_role("button", name="Agree and start").click()
