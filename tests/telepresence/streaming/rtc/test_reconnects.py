"""Former viewers leave no connections, descriptors or threads behind."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.leftovers import Leftovers

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VIEWERS = 12
LAST_CHECKED = 1  # peer connection that a local variable of the watchdog still refers to


def count_resources() -> dict[str, int]:
    """File descriptors and threads of this process."""
    return {"descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()), "threads": threading.active_count()}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_former_viewers_leave_no_resources_behind(studio: Any, chromium: Browser, root: Path) -> None:
    page = chromium.new_page()
    page.add_init_script(path=root / "tools" / "call_figures" / "watch.js")
    page.goto(f"{studio.server.address}healthz")

    def come_and_go(times: int) -> None:
        for _ in range(times):
            assert page.evaluate("callFigures.connect(true)")["first"] is not None
            assert page.evaluate("callFigures.disconnect()")

    connections = Leftovers("RTCPeerConnection")
    come_and_go(2)
    studio.until(lambda: studio.server.viewers == 0)
    studio.until(lambda: len(connections) <= LAST_CHECKED, what=connections)
    before = count_resources()
    come_and_go(VIEWERS)
    studio.until(lambda: studio.server.viewers == 0)
    studio.until(lambda: count_resources()["descriptors"] <= before["descriptors"])
    studio.until(lambda: len(connections) <= LAST_CHECKED, what=connections)
    assert count_resources()["threads"] <= before["threads"]
