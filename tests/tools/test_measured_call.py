"""A measured call, whole: a browser's camera is tracked, and the avatar's pictures of it come back in order."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from call_figures import barcode
from call_figures.browser import chromium, fake_camera_flags, observed, start_browser_camera
from call_figures.camera_video import FPS, write_camera_video
from call_figures.daemon import stamped_daemon
from call_figures.delay import NONE

from tests.support.small_avatar import SMALL_AVATAR_OPTIONS

VIDEO_S = 15.0  # so long that half of it is longer than any pause
PICTURES = 15
"""Of the avatar, each made of another picture of the camera."""


@pytest.mark.timeout(150)
def test_the_avatar_of_a_browsers_camera_comes_back_in_order(shared: Path, models: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.mjpeg"
    write_camera_video(shared / "clips" / "d9.mp4", film, VIDEO_S)
    options = ("--source=browser", f"--models={models}", f"--avatar={tmp_path / 'avatar'}", *SMALL_AVATAR_OPTIONS)
    with stamped_daemon(tmp_path, *options) as running, chromium(*fake_camera_flags(film)) as browser:
        page = observed(browser)
        page.goto(running.address)
        start_browser_camera(page)
        page.evaluate("window.own = callFigures.watchOwn()")
        page.evaluate("window.watching = callFigures.watchAvatar()")
        own: list[list[float]] = []
        seen: list[list[float]] = []
        order: list[int] = []
        while len(order) < PICTURES:
            assert running.age() < 120.0, running.output()
            page.wait_for_timeout(500)
            own += page.evaluate("own.take()")
            seen += page.evaluate("watching.take()")
            numbers = [int(number) for *_, number in seen if number != NONE]
            order = [number for before, number in pairwise([NONE, *numbers]) if number != before]
        status = running.status()
        shown = [line for line in running.lines() if line.get("drawn_at") is not None]
    assert status["errors"] == []
    assert status["tracking"]["health"] >= 0.9
    assert shown, "what came back was drawn, not the camera's picture"
    length = round(VIDEO_S * FPS)
    steps = [(b - a) % length for a, b in pairwise(order)]
    assert max(steps) < length / 2, "no picture comes back after a later one"
    first_seen: dict[int, float] = {}
    for wall, _count, number in own:
        first_seen.setdefault(int(number), wall)
    trips = [wall - first_seen[int(number)] for wall, *_, number in seen if number in first_seen and number != NONE]
    assert len(trips) > PICTURES / 2
    assert min(trips) > 0.0, "what comes back was before the camera first"
    stamps = [int(stamp) for _wall, _count, stamp, _number in seen if stamp != NONE]
    assert all((b - a) % barcode.MODULUS < barcode.MODULUS / 2 for a, b in pairwise(stamps)), "time goes on"
