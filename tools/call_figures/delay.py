"""Delays of a call: encoder to screen, browser camera and back, audio against video, ZeroMQ message to rendering."""

from __future__ import annotations

import random
import statistics
import time
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from playwright.sync_api import Page

from call_figures.barcode import MODULUS
from call_figures.browser import chromium, fake_camera_flags, observed, start_browser_camera, watch
from call_figures.camera_video import BEEP_EVERY, FPS
from call_figures.conditions import VIDEO_S, Conditions
from call_figures.goals import Figures, Goal, percentile, spread
from call_figures.stream import daemon_figures

NONE: Final = -1
"""Number that watch.js reports for a frame in which it can read none."""

MESSAGES_A_SECOND: Final = 10.0
"""ZeroMQ messages sent a second, on average."""

PaintedFrames = Sequence[Sequence[float]]
"""Frames that a browser painted: for each the wall-clock time in ms, the count so far, and the numbers in it."""


def measure_latency(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """Milliseconds from handing a frame to the encoder to painting it in the browser."""
    with conditions.call() as daemon, chromium() as browser:
        page = observed(browser)
        watch(page, daemon.address)
        seen = collect_painted_frames(page, conditions)
        status = daemon.status()
    late = encoder_to_screen_ms(seen)
    figures = {"latency_ms": spread(late), "unreadable": count_unreadable(seen), **daemon_figures(status)}
    bounds = (60.0, 100.0) if conditions.learning else (50.0, 80.0)
    return figures, [
        Goal("p50", figures["latency_ms"]["p50"], bounds[0], 30.0, " ms"),
        Goal("p95", figures["latency_ms"]["p95"], bounds[1], 45.0, " ms"),
    ]


def measure_round_trip(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """Milliseconds from painting a camera frame in the page to painting the avatar frame that was rendered from it."""
    with conditions.call(source="browser") as daemon, chromium(*fake_camera_flags(conditions.webcam())) as browser:
        page = observed(browser)
        page.goto(daemon.address)
        start_browser_camera(page)
        daemon.wait_until(lambda status: status["avatar_fps"] > 0, 60.0)
        page.evaluate("window.own = callFigures.watchOwn()")
        seen = collect_painted_frames(page, conditions)
        own: PaintedFrames = page.evaluate("own.take()")
        status = daemon.status()
    trips = round_trips_ms(own, seen)
    figures = {
        "round_trip_ms": spread(trips),
        "unreadable": count_unreadable(own),
        "own_pictures": len(own),
        **daemon_figures(status),
    }
    return figures, [Goal("p50", figures["round_trip_ms"]["p50"], 150.0, 90.0, " ms")]


def measure_audio_offset(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """Milliseconds by which the browser paints a frame later than it plays the audio of the same time."""
    with conditions.call(source=f"file:{conditions.video()}") as daemon, chromium() as browser:
        page = observed(browser)
        watch(page, daemon.address)
        page.wait_for_timeout(1000 * conditions.settle)
        page.evaluate("async () => { window.listener = callFigures.listen(0.1); await listener.ready; }")
        seen = collect_painted_frames(page, conditions, settle=1.0)
        beeps = page.evaluate("listener.beeps")
        loudest = page.evaluate("listener.loudest")
        status = daemon.status()
    behind, behind_output = (video_behind_audio_ms(seen, [beep[which] for beep in beeps]) for which in (0, 1))
    figures = {
        "video_behind_sound_ms": spread(behind) | {"sd": round(statistics.pstdev(behind), 1) if behind else None},
        "video_behind_output_ms": spread(behind_output),
        "beeps": len(beeps),
        "loudest": loudest,
        **daemon_figures(status),
    }
    middle = percentile(behind, 50.0)
    return figures, [Goal("video behind audio, p50", abs(middle) if middle is not None else None, 45.0, 20.0, " ms")]


def measure_zeromq_delay(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """Milliseconds from sending a ZeroMQ message to the start of rendering the frame that shows it."""
    from telepresence.client import ParameterClient

    sent: list[int] = []
    chance = random.Random(0)
    with conditions.call("--drive", "zmq") as daemon, chromium() as browser:
        page = observed(browser)
        watch(page, daemon.address)
        status = daemon.status()
        weights = [0.0] * 52
        with ParameterClient(status["zmq"], status["head"]["sha256"], status["head"]["basis"]) as client:
            if not client.wait(5.0):
                raise RuntimeError("the daemon does not receive ZeroMQ messages: see its log")
            end = time.monotonic() + conditions.settle + conditions.seconds
            while time.monotonic() < end:
                weights[chance.randrange(52)] = chance.random() / 2
                if client.send(expression=weights, t_capture_ns=(now := time.monotonic_ns())):
                    sent.append(now)
                page.wait_for_timeout(1000 * chance.uniform(0.5, 1.5) / MESSAGES_A_SECOND)
        lines = daemon.lines()
    drawn: dict[int, tuple[float, int, int]] = {}
    free_ns = 0
    for line in lines:  # in the order of the output frames
        if line.get("drawn_at") is not None:
            # A message that arrives while a frame is rendered waits for it: that rendering time is not counted.
            drawn.setdefault(line["captured_ns"], (1e9 * line["drawn_at"], free_ns, line["shown_ns"]))
            free_ns = line["shown_ns"]
    counted = [stamp for stamp in sent if stamp > sent[0] + 1e9 * conditions.settle]
    shown = [(stamp, *drawn[stamp]) for stamp in counted if stamp in drawn]
    figures = {
        "message_to_drawing_ms": spread([1e-6 * (began - max(stamp, free)) for stamp, began, free, _ in shown]),
        "message_to_encoder_ms": spread([1e-6 * (ended - stamp) for stamp, _, _, ended in shown]),
        "found_it_busy": sum(free > stamp for stamp, _, free, _ in shown),
        "messages": len(counted),
        "not_shown": len(counted) - len(shown),
        **daemon_figures(status),
    }
    return figures, [Goal("p95", figures["message_to_drawing_ms"]["p95"], 10.0, 3.0, " ms")]


# ---- painted frames


def collect_painted_frames(page: Page, conditions: Conditions, settle: float | None = None) -> PaintedFrames:
    """Frames of the avatar that the page paints during ``conditions.seconds``, after ``settle`` seconds.

    RuntimeError if the wall clock was changed meanwhile.
    """
    page.evaluate("window.watching = callFigures.watchAvatar()")
    page.wait_for_timeout(1000 * (conditions.settle if settle is None else settle))
    page.evaluate("watching.take()")
    page.wait_for_timeout(1000 * conditions.seconds)
    seen: PaintedFrames = page.evaluate("watching.take()")
    clock = page.evaluate("callFigures.clock()")
    if not -2.0 < clock["wall"] - clock["date"] < 3.0:
        raise RuntimeError("the wall clock was changed during the measurement: measure again")
    return seen


def encoder_to_screen_ms(seen: PaintedFrames) -> list[float]:
    """Milliseconds from the encoder to the first painting of every frame."""
    late, last = [], None
    for wall, _count, stamp, *_ in seen:
        if stamp not in (NONE, last):
            late.append(((10.0 * wall - stamp + MODULUS / 2) % MODULUS - MODULUS / 2) / 10.0)
            last = stamp
    return late


def count_unreadable(seen: PaintedFrames) -> int:
    """Number of painted frames in which no time could be read."""
    return sum(picture[2] == NONE for picture in seen)


def first_painted(seen: PaintedFrames, column: int) -> list[tuple[float, int]]:
    """Wall-clock ms and number of every frame when it was first painted.

    The numbers of the test video, which is played in a loop, are continued after its end.
    """
    found: list[tuple[float, int]] = []
    length = round(VIDEO_S * FPS)
    for picture in seen:
        number = int(picture[column])
        if number == NONE or (found and number == found[-1][1] % length):
            continue
        if found:
            number += length * round((found[-1][1] - number) / length)
        found.append((picture[0], number))
    return found


def round_trips_ms(own: PaintedFrames, seen: PaintedFrames) -> list[float]:
    """Milliseconds between painting a camera frame and painting the avatar frame with the same number."""
    length = round(VIDEO_S * FPS)
    cameras: dict[int, list[float]] = {}
    for wall, number in first_painted(own, 2):
        cameras.setdefault(number % length, []).append(wall)
    trips = []
    for wall, number in first_painted(seen, 3):
        before = cameras.get(number % length, [])
        if at := bisect_right(before, wall):
            trips.append(wall - before[at - 1])
    return [trip for trip in trips if trip < 500.0 * VIDEO_S]


def video_behind_audio_ms(seen: PaintedFrames, heard: Sequence[float]) -> list[float]:
    """Milliseconds by which frames are painted later than audio of the same time is played, for each beep.

    ``heard`` has the wall-clock time in ms at which each beep starts.
    """
    behind = []
    shown = first_painted(seen, 3)
    starts = [
        (wall - 1000.0 * number / FPS) for wall, number in shown
    ]  # when picture 0 was, or would have been, collect_painted_frames
    for beep in heard:
        near = [start for (wall, _), start in zip(shown, starts, strict=True) if abs(wall - beep) < 1000.0]
        if len(near) < 5:
            continue
        start = statistics.median(near)
        number = BEEP_EVERY * round((beep - start) * FPS / 1000.0 / BEEP_EVERY)
        behind.append(start + 1000.0 * number / FPS - beep)
    return behind
