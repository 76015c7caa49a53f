"""Headless Chromium, with pages that observe the call from inside (``watch.js``)."""

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
    # Media between two processes of one machine that may have no network but loopback:
    "--allow-loopback-in-peer-connection",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
)
"""Command line flags of Chromium for every measurement."""

PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome")
"""Names under which Chromium is installed, in order of preference."""

WAIT_MS: Final = 120_000
"""Milliseconds that a page waits for an element or a navigation."""

WATCH: Final = Path(__file__).with_name("watch.js")
"""Script that is added to every observed page and defines ``callFigures``."""


def program() -> str:
    """Path of the installed browser.  RuntimeError if there is none."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        raise RuntimeError("needs a browser: apt-get install chromium")
    return found


def version() -> str:
    """Name and version of the installed browser."""
    done = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """Run a headless Chromium with an empty profile until the block ends; ``flags`` are added to `FLAGS`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), headless=True, args=[*FLAGS, *flags])
        yield browser
        browser.close()


def fake_camera_flags(video: Path) -> tuple[str, ...]:
    """Flags that make Chromium use a motion-JPEG file as its camera, without a question to the user."""
    return (
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={video}",
    )


def observed(browser: Browser) -> Page:
    """Open an empty page in which ``callFigures`` (`WATCH`) is defined before any script of a page runs."""
    page = browser.new_context(bypass_csp=True).new_page()
    page.set_default_timeout(WAIT_MS)
    page.add_init_script(path=WATCH)
    return page


def watch(page: Page, address: str, seconds: float = 60.0) -> None:
    """Open the daemon's page and wait for the first decoded frame.  RuntimeError if none comes in ``seconds``."""
    page.goto(address)
    counted = "async () => ((await callFigures.counted())?.framesDecoded ?? 0) > 0"
    for _ in range(round(seconds / 0.1)):
        if page.evaluate(counted):
            return
        page.wait_for_timeout(100)
    raise RuntimeError(f"the page received no video within {seconds:g} s")


def start_browser_camera(page: Page) -> None:
    """Press *Use my camera* on the daemon's page, and agree to the terms that it shows."""
    page.get_by_role("button", name="Use my camera").click()
    page.get_by_role("button", name="Agree and start").click()
