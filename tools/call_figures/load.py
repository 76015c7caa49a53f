"""Cost of viewers: processor time of each, memory over many connections, time until a lost one is cleaned up."""

from __future__ import annotations

import os
import signal
import statistics
import time
from typing import Any, Final

from playwright.sync_api import Browser, Page

from call_figures.browser import chromium, observed, watch
from call_figures.conditions import Conditions
from call_figures.daemon import DaemonProcess
from call_figures.goals import Figures, Goal, median
from call_figures.stream import daemon_figures, open_blank_page

MANY: Final = 8
"""Number of viewers that is compared with one viewer."""

ROUNDS: Final = 3
"""Times that one and many viewers are measured in turns."""

JOINED_S: Final = 3.0
"""Seconds between the last connection and the measurement."""

KILLS: Final = 3
"""Browser tabs that are killed."""

GIVE_UP_S: Final = 60.0
"""Seconds after which a viewer whose tab was killed must be gone."""

CONNECTS: Final = 80
"""Viewers that connect and disconnect between the two measurements of memory."""

WARM_UP: Final = 40
"""Viewers that connect and disconnect before the first measurement, while the daemon still fills its caches."""

REST_S: Final = 5.0
"""Seconds without viewers before memory is measured."""


def measure_viewers(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """Processor time of each further viewer, from one and `MANY` viewers in turns."""
    used: dict[int, list[float]] = {1: [], MANY: []}
    with conditions.call() as daemon, chromium() as browser:
        page = open_blank_page(browser, daemon)
        page.evaluate("callFigures.connect(false)")
        page.wait_for_timeout(1000 * conditions.settle)
        for _ in range(ROUNDS):
            for count, others in ((1, 0), (MANY, MANY - 1)):
                for _ in range(others):
                    page.evaluate("callFigures.connect(false)")
                page.wait_for_timeout(1000 * JOINED_S)
                used[count].append(_cores(page, daemon, conditions.seconds / ROUNDS))
                for _ in range(others):
                    page.evaluate("callFigures.disconnect()")
        status = daemon.status()
    one, many = (statistics.mean(used[count]) for count in (1, MANY))
    cost = 100.0 * (many - one) / (MANY - 1)
    figures = {
        "percent_of_a_core": round(cost, 2),
        "streaming_percent": {str(count): [round(100.0 * cores, 1) for cores in used[count]] for count in used},
        **daemon_figures(status),
    }
    return figures, [Goal("one more viewer", figures["percent_of_a_core"], 1.5, 0.9, " % of a core")]


def measure_killed_tab(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """Seconds until the daemon has freed the sockets of a viewer whose tab was killed."""
    times = []
    with conditions.call() as daemon:
        for _ in range(KILLS):
            before = daemon.udp_sockets()
            with chromium() as browser:
                watch(page := observed(browser), daemon.address)
                daemon.wait_until(lambda status: status["viewers"] == 1, 20.0)
                os.kill(_renderer(browser, page), signal.SIGKILL)
                began = time.monotonic()
                page.wait_for_event("crash", timeout=5000)
                while daemon.status()["viewers"] or daemon.udp_sockets() > before:
                    if time.monotonic() - began > GIVE_UP_S:
                        raise RuntimeError(f"the daemon still has a viewer {GIVE_UP_S:g} s after its tab was killed")
                    time.sleep(0.05)
                times.append(time.monotonic() - began)
    figures = {"seconds": [round(t, 2) for t in times]}
    return figures, [Goal("resources free after, at worst", round(max(times), 2), 8.0, 3.0, " s")]


def measure_reconnects(conditions: Conditions, minutes: float = 30.0) -> tuple[Figures, list[Goal]]:
    """Growth of memory over `CONNECTS` connections, and over ``minutes`` with one viewer."""
    with conditions.call() as daemon, chromium() as browser:
        page = open_blank_page(browser, daemon)
        _connect_and_disconnect(page, WARM_UP)
        before = _resources(page, daemon)
        _connect_and_disconnect(page, CONNECTS)
        after = _resources(page, daemon)
        page.evaluate("callFigures.connect(true)")
        samples: list[float] = []
        end = time.monotonic() + 60.0 * minutes
        while time.monotonic() < end:
            page.wait_for_timeout(5000)
            samples.append(daemon.memory_mb())
        status = daemon.status()
    growth = round(after["memory_mb"] - before["memory_mb"], 1)
    tenth = max(1, len(samples) // 10)
    crept = median(samples[-tenth:]) or 0.0
    crept = round(crept - (median(samples[:tenth]) or 0.0), 1)
    figures = {
        "connects": CONNECTS,
        "before": before,
        "after": after,
        "growth_mb": growth,
        "minutes": minutes,
        "minutes_growth_mb": crept if samples else None,
        "curve_mb": [round(sample, 1) for sample in samples[:: max(1, len(samples) // 60)]],
        **daemon_figures(status),
    }
    goals = [Goal(f"growth over {CONNECTS} connects", growth, 20.0, 0.0, " MB")]
    if samples:
        goals.append(Goal(f"growth over {minutes:g} min", crept, 20.0, 0.0, " MB"))
    return figures, goals


def _connect_and_disconnect(page: Page, times: int) -> None:
    for _ in range(times):
        page.evaluate("callFigures.connect(true)")
        page.evaluate("callFigures.disconnect()")


def _resources(page: Page, daemon: DaemonProcess) -> dict[str, Any]:
    """Memory, descriptors, threads and UDP sockets of the daemon after `REST_S` seconds of rest."""
    memory = []
    page.wait_for_timeout(1000 * REST_S)
    for _ in range(10):
        memory.append(daemon.memory_mb())
        page.wait_for_timeout(200)
    return {
        "memory_mb": median(memory),
        "descriptors": daemon.descriptors(),
        "threads": daemon.threads(),
        "udp_sockets": daemon.udp_sockets(),
    }


def _cores(page: Page, daemon: DaemonProcess, seconds: float) -> float:
    """Cores that encoding and sending use, on average over ``seconds``."""
    began, used = time.monotonic(), daemon.streaming_cpu_s()
    page.wait_for_timeout(1000 * seconds)
    return (daemon.streaming_cpu_s() - used) / (time.monotonic() - began)


def _renderer(browser: Browser, page: Page) -> int:
    """Process id of the renderer of ``page``: the one that uses the processor while a script runs in the page."""
    before = _renderers(browser)
    page.evaluate("() => { let sum = 0; for (let n = 0; n < 1e9; n++) sum += n; return sum; }")
    return max(after := _renderers(browser), key=lambda process: after[process] - before.get(process, 0.0))


def _renderers(browser: Browser) -> dict[int, float]:
    """Seconds of processor time of every renderer process, by process id."""
    found = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    return {process["id"]: process["cpuTime"] for process in found if process["type"] == "renderer"}
