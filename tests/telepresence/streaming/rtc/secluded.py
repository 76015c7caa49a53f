"""A call on a machine without internet; prints which machines the daemon contacted.  Run by `test_secluded.py`.

The browser hides its addresses behind names of multicast DNS, as it does until the camera is allowed.
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

from playwright.sync_api import sync_playwright

from tests.support.studio import Studio

FRAMES = 30


def main() -> None:
    looked_up: set[str] = set()
    spoken_to: set[str] = set()

    def record(event: str, details: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            looked_up.add(str(details[0]))
        elif event in ("socket.connect", "socket.sendto") and isinstance(details[1], tuple):
            spoken_to.add(str(details[1][0]))

    with Studio() as studio, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        page = browser.new_page()
        offers: list[str] = []
        page.on("request", lambda request: offers.append(request.post_data or ""))
        # From here on only the daemon opens sockets: playwright uses a pipe.
        sys.addaudithook(record)
        page.goto(studio.server.address)
        studio.watching(page, FRAMES)
        shown = studio.likeness(studio.grab(page))
        browser.close()
    hidden = any(".local" in offer for offer in offers)
    found = {"psnr": shown, "hidden": hidden, "looked_up": sorted(looked_up), "spoken_to": sorted(spoken_to)}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
