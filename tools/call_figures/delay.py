"""How late things are: from the encoder to the screen, from a camera and back, sound beside picture, messages."""

from __future__ import annotations

import random
import statistics
import time
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from playwright.sync_api import Page

from call_figures.barcode import MODULUS
from call_figures.browser import chromium, film_flags, lend_camera, observed, watch
from call_figures.conditions import FILM_S, Conditions
from call_figures.film import BEEP_EVERY, FPS
from call_figures.goals import Figures, Goal, percentile, spread
from call_figures.stream import of_status

NONE: Final = -1  # where watch.js could read no number
MESSAGES_A_SECOND: Final = 10.0

Seen = Sequence[Sequence[float]]
"""Pictures that were painted: wall-clock ms, how many were by then, the numbers in them."""


def latency(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """From the moment a new picture is handed to the encoder to its painting in the browser."""
    with conditions.call() as daemon, chromium() as browser:
        page = observed(browser)
        watch(page, daemon.address)
        seen = painted(page, conditions)
        status = daemon.status()
    late = lateness(seen)
    figures = {"latency_ms": spread(late), "unreadable": unreadable(seen), **of_status(status)}
    bounds = (60.0, 100.0) if conditions.learning else (50.0, 80.0)
    return figures, [
        Goal("p50", figures["latency_ms"]["p50"], bounds[0], 30.0, " ms"),
        Goal("p95", figures["latency_ms"]["p95"], bounds[1], 45.0, " ms"),
    ]


def round_trip(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """From a camera picture's painting in the page to that of the avatar's picture that was made of it."""
    with conditions.call(source="browser") as daemon, chromium(*film_flags(conditions.webcam())) as browser:
        page = observed(browser)
        page.goto(daemon.address)
        lend_camera(page)
        daemon.wait_until(lambda status: status["avatar_fps"] > 0, 60.0)
        page.evaluate("window.own = callFigures.watchOwn()")
        seen = painted(page, conditions)
        own: Seen = page.evaluate("own.take()")
        status = daemon.status()
    trips = round_trips(own, seen)
    figures = {
        "round_trip_ms": spread(trips),
        "unreadable": unreadable(own),
        "own_pictures": len(own),
        **of_status(status),
    }
    return figures, [Goal("p50", figures["round_trip_ms"]["p50"], 150.0, 90.0, " ms")]


def sound(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """How much later the picture is than the sound that belongs to it, in the browser."""
    with conditions.call(source=f"file:{conditions.video()}") as daemon, chromium() as browser:
        page = observed(browser)
        watch(page, daemon.address)
        page.wait_for_timeout(1000 * conditions.settle)
        page.evaluate("async () => { window.ear = callFigures.listen(0.1); await ear.ready; }")
        seen = painted(page, conditions, settle=1.0)
        heard = page.evaluate("ear.heard")
        loudest = page.evaluate("ear.loudest")
        status = daemon.status()
    behind, behind_output = (offsets(seen, [beep[which] for beep in heard]) for which in (0, 1))
    figures = {
        "video_behind_sound_ms": spread(behind) | {"sd": round(statistics.pstdev(behind), 1) if behind else None},
        "video_behind_output_ms": spread(behind_output),
        "beeps": len(heard),
        "loudest": loudest,
        **of_status(status),
    }
    middle = percentile(behind, 50.0)
    return figures, [Goal("video behind sound, p50", abs(middle) if middle is not None else None, 45.0, 20.0, " ms")]


def zeromq(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """From a message's sending to the beginning of the picture that shows it: what rendering takes is not in it."""
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
                raise RuntimeError("the daemon takes no messages")
            end = time.monotonic() + conditions.settle + conditions.seconds
            while time.monotonic() < end:
                weights[chance.randrange(52)] = chance.random() / 2
                if client.send(expression=weights, t_capture_ns=(now := time.monotonic_ns())):
                    sent.append(now)
                page.wait_for_timeout(1000 * chance.uniform(0.5, 1.5) / MESSAGES_A_SECOND)
        lines = daemon.lines()
    drawn, free_ns = {}, 0
    for line in lines:  # in the order in which they were shown
        if line.get("drawn_at") is not None:
            # A message that finds the renderer at work waits for it: what rendering takes is not in the figure.
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
        **of_status(status),
    }
    return figures, [Goal("p95", figures["message_to_drawing_ms"]["p95"], 10.0, 3.0, " ms")]


# ---- pictures that were painted


def painted(page: Page, conditions: Conditions, settle: float | None = None) -> Seen:
    """What the page shows of the avatar for some time, once it has settled."""
    page.evaluate("window.watching = callFigures.watchAvatar()")
    page.wait_for_timeout(1000 * (conditions.settle if settle is None else settle))
    page.evaluate("watching.take()")
    page.wait_for_timeout(1000 * conditions.seconds)
    seen: Seen = page.evaluate("watching.take()")
    clock = page.evaluate("callFigures.clock()")
    if not -2.0 < clock["wall"] - clock["date"] < 3.0:
        raise RuntimeError("the wall clock was set while it was looked at: measure again")
    return seen


def lateness(seen: Seen) -> list[float]:
    """Milliseconds from the encoder to the screen of every new picture, when it was painted first."""
    late, last = [], None
    for wall, _count, stamp, *_ in seen:
        if stamp not in (NONE, last):
            late.append(((10.0 * wall - stamp + MODULUS / 2) % MODULUS - MODULUS / 2) / 10.0)
            last = stamp
    return late


def unreadable(seen: Seen) -> int:
    return sum(picture[2] == NONE for picture in seen)


def first_painted(seen: Seen, column: int) -> list[tuple[float, int]]:
    """(wall-clock ms, number) of every new number, when it was painted first; film numbers go on after its end."""
    found: list[tuple[float, int]] = []
    length = round(FILM_S * FPS)
    for picture in seen:
        number = int(picture[column])
        if number == NONE or (found and number == found[-1][1] % length):
            continue
        if found:
            number += length * round((found[-1][1] - number) / length)
        found.append((picture[0], number))
    return found


def round_trips(own: Seen, seen: Seen) -> list[float]:
    """Milliseconds between the paintings of a camera's picture and of the avatar's picture of the same number."""
    length = round(FILM_S * FPS)
    cameras: dict[int, list[float]] = {}
    for wall, number in first_painted(own, 2):
        cameras.setdefault(number % length, []).append(wall)
    trips = []
    for wall, number in first_painted(seen, 3):
        before = cameras.get(number % length, [])
        if at := bisect_right(before, wall):
            trips.append(wall - before[at - 1])
    return [trip for trip in trips if trip < 500.0 * FILM_S]


def offsets(seen: Seen, heard: Sequence[float]) -> list[float]:
    """Of every beep, by how many ms the pictures around it are painted later than it is heard."""
    behind = []
    shown = first_painted(seen, 3)
    starts = [
        (wall - 1000.0 * number / FPS) for wall, number in shown
    ]  # when picture 0 was, or would have been, painted
    for beep in heard:
        near = [start for (wall, _), start in zip(shown, starts, strict=True) if abs(wall - beep) < 1000.0]
        if len(near) < 5:
            continue
        start = statistics.median(near)
        number = BEEP_EVERY * round((beep - start) * FPS / 1000.0 / BEEP_EVERY)
        behind.append(start + 1000.0 * number / FPS - beep)
    return behind
