"""The stream as a browser receives it: frame rate, freezes, largest gap, time to the first frame."""

from __future__ import annotations

import shutil
import time
from itertools import pairwise
from typing import Any, Final

from playwright.sync_api import Page

from call_figures.browser import chromium, observed, watch
from call_figures.conditions import Conditions
from call_figures.daemon import DaemonProcess
from call_figures.goals import Figures, Goal, median, spread

FIRST_TIMES: Final = 20
"""Connections over which the time to the first frame is measured."""

GAPS_S: Final = 90.0
"""Shortest duration, in seconds, over which gaps are measured."""


def measure_received(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """Frames a second that a browser decodes while the daemon tracks, renders and learns."""
    with conditions.call() as daemon, chromium() as browser:
        page = observed(browser)
        watch(page, daemon.address)
        page.wait_for_timeout(1000 * conditions.settle)
        counts = [_counted(page)]
        for _ in range(round(conditions.seconds)):
            page.wait_for_timeout(1000)
            counts.append(_counted(page))
        status = daemon.status()
    first, last = counts[0], counts[-1]
    rates = [rate(a, b, "framesDecoded") for a, b in pairwise(counts)]
    grown = {key: last[key] - first[key] for key in ("freezeCount", "framesDropped", "unpainted", "packetsLost")}
    figures = {
        "fps": rate(first, last, "framesDecoded"),
        "painted_fps": rate(first, last, "painted"),
        "fps_each_second": {"p50": median(rates), "min": min(rates)},
        "freezes": grown["freezeCount"],
        "dropped": grown["framesDropped"],
        "unpainted": grown["unpainted"],
        "packets_lost": grown["packetsLost"],
        "kbps": kbps(first, last),
        "codec": last["codec"],
        "size": [last["frameWidth"], last["frameHeight"]],
        **daemon_figures(status),
    }
    return figures, [
        Goal("pictures a second", figures["fps"], 29.0, 30.0, least=True),
        Goal("freezes", figures["freezes"], 0.0, 0.0),
        Goal("dropped", figures["dropped"], 0.0, 0.0),
    ]


def measure_gaps(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """Largest gap between frames of a call that starts without an avatar and without compiled kernels."""
    cache = conditions.scratch / "kernels"
    shutil.rmtree(cache, ignore_errors=True)
    compiling = {"TELEPRESENCE_KERNEL_CACHE": str(cache)}
    with conditions.call(learned_first=False, environment=compiling) as daemon, chromium() as browser:
        page = observed(browser)
        page.goto(daemon.address)
        page.evaluate("window.watching = callFigures.watchAvatar()")
        states: dict[str, float] = {}  # state of the session: seconds at which it was first reported
        seen: list[list[float]] = []
        began = time.monotonic()
        while time.monotonic() - began < max(GAPS_S, conditions.seconds):
            page.wait_for_timeout(500)
            seen += page.evaluate("watching.take()")
            status = daemon.status()
            states.setdefault(status["state"], round(time.monotonic() - began, 1))
        counts = _counted(page)
    gaps_ms = [(b[0] - a[0], a[0] - seen[0][0], b[1] - a[1]) for a, b in pairwise(seen)]
    longest = sorted(gaps_ms, reverse=True)[:5]
    figures = {
        "largest_ms": round(longest[0][0], 1) if longest else None,
        "longest": [{"ms": round(g), "at_s": round(t / 1000, 1), "pictures": int(n)} for g, t, n in longest],
        "gap_ms": spread([gap for gap, _, _ in gaps_ms]),
        "pictures": len(seen),
        "states": states,
        "freezes": counts["freezeCount"],
        "freeze_s": counts["totalFreezesDuration"],
        **daemon_figures(status),
    }
    return figures, [Goal("largest gap", figures["largest_ms"], 200.0, 80.0, " ms")]


def measure_first_frame(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """Milliseconds from sending the offer to the first painted frame, over `FIRST_TIMES` connections."""
    with conditions.call() as daemon, chromium() as browser:
        page = open_blank_page(browser, daemon)
        page.wait_for_timeout(1000 * conditions.settle)
        times = []
        for _ in range(FIRST_TIMES):
            times.append(page.evaluate("callFigures.connect(true)"))
            page.wait_for_timeout(500)
            page.evaluate("callFigures.disconnect()")
            page.wait_for_timeout(500)
    painted = [found["first"] for found in times if found["first"] is not None]
    figures: Figures = {
        "first_frame_ms": spread(painted),
        "answer_ms": spread([found["answered"] for found in times]),
        "never": len(times) - len(painted),
    }
    return figures, [Goal("first picture", figures["first_frame_ms"]["p50"], 500.0, 150.0, " ms")]


def open_blank_page(browser: Any, daemon: DaemonProcess) -> Page:
    """Open a page of the daemon's origin that makes no connection by itself."""
    page = observed(browser)
    page.goto(f"{daemon.address}/healthz")
    return page


def rate(first: dict[str, Any], last: dict[str, Any], key: str) -> float:
    """Growth of the counter ``key`` a second, rounded to 0.1."""
    return round(1000.0 * (last[key] - first[key]) / (last["timestamp"] - first["timestamp"]), 1)


def daemon_figures(status: dict[str, Any]) -> Figures:
    """Rates, errors and stage times of the daemon, from its status."""
    keys = ("state", "latency_ms", "avatar_fps", "camera_fps", "tracked_fps", "steps_per_second", "render_px", "errors")
    stages = {name: stage["ms"] for name, stage in status["stages"].items() if stage["ms"]}
    more = {"audio": status["audio"], "tracking_health": status["tracking"]["health"], "stages_ms": stages}
    return {"daemon": {key: status[key] for key in keys} | more}


def kbps(first: dict[str, Any], last: dict[str, Any]) -> int:
    """Received video in kbit/s between two counts."""
    return round(8.0 * (last["bytesReceived"] - first["bytesReceived"]) / (last["timestamp"] - first["timestamp"]))


def _counted(page: Page) -> dict[str, Any]:
    """Counters of the received video.  RuntimeError if the page receives none."""
    found: dict[str, Any] | None = page.evaluate("callFigures.counted()")
    if found is None:
        raise RuntimeError("the page receives no video")
    return found
