"""A whole measured call: frames of a browser's camera are tracked, and the avatar frames come back in order."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from call_figures import barcode
from call_figures.browser import chromium, fake_camera_flags, observed, start_browser_camera
from call_figures.camera_video import FPS, write_camera_video
from call_figures.daemon import stamped_daemon
from call_figures.delay import NONE

from tests.support.small_avatar import SMALL_AVATAR_OPTIONS

VIDEO_S = 40.0
"""Length of the camera's video, which Chromium plays in a loop: half of it must be longer than any pause."""

FRAMES = 15
"""Avatar frames that are waited for, each made of another camera frame."""

PATIENCE_S = 400.0
"""Seconds after which the call has failed; on a quiet machine it takes about 30."""


def test_the_avatar_of_a_browsers_camera_comes_back_in_order(shared: Path, models: Path, tmp_path: Path) -> None:
    video = tmp_path / "camera.mjpeg"
    write_camera_video(shared / "clips" / "d9.mp4", video, VIDEO_S)
    options = ("--source=browser", f"--models={models}", f"--avatar={tmp_path / 'avatar'}", *SMALL_AVATAR_OPTIONS)
    with stamped_daemon(tmp_path, *options) as running, chromium(*fake_camera_flags(video)) as browser:
        page = observed(browser)
        page.goto(running.address)
        start_browser_camera(page)
        page.evaluate("window.own = callFigures.watchOwn()")
        page.evaluate("window.watching = callFigures.watchAvatar()")
        own: list[list[float]] = []
        seen: list[list[float]] = []
        order: list[int] = []
        trips: list[float] = []
        while len(order) < FRAMES or len(trips) < FRAMES / 2:
            assert running.age() < PATIENCE_S, running.output()
            page.wait_for_timeout(500)
            own += page.evaluate("own.take()")
            seen += page.evaluate("watching.take()")
            numbers = [int(number) for *_, number in seen if number != NONE]
            order = [number for before, number in pairwise([NONE, *numbers]) if number != before]
            trips = round_trips(own, seen)
        status = running.status()
        shown = [line for line in running.lines() if line.get("drawn_at") is not None]
    assert status["errors"] == []
    assert status["tracking"]["health"] > 0.0, "how often the face is lost is a figure of tools/measure_call.py"
    assert shown, "the daemon rendered the frames that came back"
    length = round(VIDEO_S * FPS)
    assert max((b - a) % length for a, b in pairwise(order)) < length / 2, "no frame comes back after a later one"
    assert min(trips) > 0.0, "a camera frame is shown by the browser before the avatar frame that is made of it"
    stamps = [int(stamp) for _wall, _count, stamp, _number in seen if stamp != NONE]
    assert all((b - a) % barcode.MODULUS < barcode.MODULUS / 2 for a, b in pairwise(stamps)), "times increase"


def round_trips(own: list[list[float]], seen: list[list[float]]) -> list[float]:
    """Milliseconds from showing a camera frame in the browser to showing each avatar frame that was made of it."""
    first_shown: dict[int, float] = {}
    for wall, _count, number in own:
        first_shown.setdefault(int(number), wall)
    return [wall - first_shown[int(number)] for wall, *_, number in seen if number != NONE and number in first_shown]
