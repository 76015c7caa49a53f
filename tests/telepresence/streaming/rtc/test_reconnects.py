"""Viewers that came and went leave nothing behind."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiortc import RTCPeerConnection

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VIEWERS = 12
LOOKED_AT = 1  # peer connection that the watchdog looked at last and still names


def held() -> dict[str, int]:
    """What this process holds."""
    gc.collect()
    return {
        "peer connections": sum(type(thing) is RTCPeerConnection for thing in gc.get_objects()),
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": threading.active_count(),
    }


@pytest.mark.timeout(90)
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_viewers_that_came_and_went_leave_nothing(studio: Any, chromium: Browser, root: Path) -> None:
    page = chromium.new_page()
    page.add_init_script(path=root / "tools" / "call_figures" / "watch.js")
    page.goto(f"{studio.server.address}healthz")

    def come_and_go(times: int) -> None:
        for _ in range(times):
            assert page.evaluate("callFigures.connect(true)")["first"] is not None
            assert page.evaluate("callFigures.disconnect()")

    come_and_go(2)
    studio.until(lambda: studio.server.viewers == 0)
    studio.until(lambda: held()["peer connections"] <= LOOKED_AT)
    before = held()
    come_and_go(VIEWERS)
    studio.until(lambda: studio.server.viewers == 0)
    studio.until(lambda: held()["descriptors"] <= before["descriptors"])
    studio.until(lambda: held()["peer connections"] <= LOOKED_AT)
    assert held()["threads"] <= before["threads"]
