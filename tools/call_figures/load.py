"""What viewers cost: processor time for each, memory over many, and how long one who is gone is missed."""

from __future__ import annotations

import os
import signal
import statistics
import time
from typing import Any, Final

from playwright.sync_api import Browser, Page

from call_figures.browser import chromium, observed, watch
from call_figures.conditions import Conditions
from call_figures.daemon import Daemon
from call_figures.goals import Figures, Goal, median
from call_figures.stream import bare, of_status

MANY: Final = 8
ROUNDS: Final = 3
JOINED_S: Final = 3.0
KILLS: Final = 3
GIVE_UP_S: Final = 60.0
CONNECTS: Final = 80
WARM_UP: Final = 40
"""Viewers that come and go before it counts: until then the daemon still fills its caches."""
REST_S: Final = 5.0


def viewers(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """Processor time that each further viewer costs the daemon: one and eight of them in turns."""
    used: dict[int, list[float]] = {1: [], MANY: []}
    with conditions.call() as daemon, chromium() as browser:
        page = bare(browser, daemon)
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
        **of_status(status),
    }
    return figures, [Goal("one more viewer", figures["percent_of_a_core"], 1.5, 0.9, " % of a core")]


def killed_tab(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """How long the daemon keeps what a viewer took whose tab was killed."""
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
                        raise RuntimeError(f"a viewer whose tab was killed is still there after {GIVE_UP_S:g} s")
                    time.sleep(0.05)
                times.append(time.monotonic() - began)
    figures = {"seconds": [round(t, 2) for t in times]}
    return figures, [Goal("resources free after, at worst", round(max(times), 2), 8.0, 3.0, " s")]


def reconnects(conditions: Conditions, minutes: float = 30.0) -> tuple[Figures, list[Goal]]:
    """What stays of 80 viewers that came and went, and of minutes with one."""
    with conditions.call() as daemon, chromium() as browser:
        page = bare(browser, daemon)
        _come_and_go(page, WARM_UP)
        before = _held(page, daemon)
        _come_and_go(page, CONNECTS)
        after = _held(page, daemon)
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
        **of_status(status),
    }
    goals = [Goal(f"growth over {CONNECTS} connects", growth, 20.0, 0.0, " MB")]
    if samples:
        goals.append(Goal(f"growth over {minutes:g} min", crept, 20.0, 0.0, " MB"))
    return figures, goals


def _come_and_go(page: Page, times: int) -> None:
    for _ in range(times):
        page.evaluate("callFigures.connect(true)")
        page.evaluate("callFigures.disconnect()")


def _held(page: Page, daemon: Daemon) -> dict[str, Any]:
    """What the daemon holds when it has come to rest."""
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


def _cores(page: Page, daemon: Daemon, seconds: float) -> float:
    """Cores that encoding and sending keep busy."""
    began, used = time.monotonic(), daemon.streaming_cpu_s()
    page.wait_for_timeout(1000 * seconds)
    return (daemon.streaming_cpu_s() - used) / (time.monotonic() - began)


def _renderer(browser: Browser, page: Page) -> int:
    """The process of ``page``: the renderer that is busy while its script is."""
    before = _renderers(browser)
    page.evaluate("() => { let sum = 0; for (let n = 0; n < 1e9; n++) sum += n; return sum; }")
    return max(after := _renderers(browser), key=lambda process: after[process] - before.get(process, 0.0))


def _renderers(browser: Browser) -> dict[int, float]:
    """CPU seconds of every renderer process."""
    found = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    return {process["id"]: process["cpuTime"] for process in found if process["type"] == "renderer"}
