"""Frame rate and latency of the stream over bad networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from playwright.sync_api import Page, Route

from call_figures.browser import chromium, observed, watch
from call_figures.conditions import Conditions
from call_figures.daemon import DaemonProcess
from call_figures.delay import PaintedFrames, count_unreadable, encoder_to_screen_ms
from call_figures.goals import Figures, Goal, spread
from call_figures.stream import daemon_figures, kbps, rate
from call_figures.udp_relay import LinkQuality, UdpRelay


@dataclass(frozen=True)
class LinkSchedule:
    """A link whose quality changes: the measured time is divided equally among ``states``.

    The first state also applies before the measurement, from the connection on.
    """

    name: str
    states: tuple[LinkQuality, ...]


LINK_SCHEDULES: Final = (
    LinkSchedule("5 % loss", (LinkQuality(loss=0.05),)),
    LinkSchedule("600 kb/s", (LinkQuality(rate=600e3),)),
    LinkSchedule("300 kb/s", (LinkQuality(rate=300e3),)),
    LinkSchedule("2 M, 500 k, 2 M", (LinkQuality(rate=2e6), LinkQuality(rate=500e3), LinkQuality(rate=2e6))),
)
"""Links that `measure_links` measures."""


def measure_links(conditions: Conditions, only: str | None = None) -> tuple[Figures, list[Goal]]:
    """Frame rate and latency (including the 20 ms of the link) over each schedule, with a new page for each.

    ``only`` limits the measurement to schedules whose name contains it.
    """
    figures: Figures = {}
    goals = []
    with conditions.call() as daemon, chromium() as browser:
        for schedule in LINK_SCHEDULES:
            if only is not None and only not in schedule.name:
                continue
            page = observed(browser)
            figures[schedule.name] = found = _measure(page, daemon, schedule, conditions)
            page.context.close()
            goals += [
                Goal(f"{schedule.name}: pictures a second", found["fps"], 20.0, 28.0, least=True),
                Goal("p50", found["latency_ms"]["p50"], 300.0, 150.0, " ms"),
            ]
        status = daemon.status()
    return {"links": figures, **daemon_figures(status)}, goals


def _measure(page: Page, daemon: DaemonProcess, schedule: LinkSchedule, conditions: Conditions) -> Figures:
    relays: list[UdpRelay] = []
    link = schedule.states[0]

    def insert_relay(route: Route) -> None:
        if route.request.method != "POST":
            route.continue_()
            return
        relay = UdpRelay(link, seed=len(relays))
        relays.append(relay)
        answer = route.fetch(post_data=relay.rewrite_offer(route.request.post_data or ""))
        body = relay.rewrite_answer(answer.text()) if answer.status == 201 else answer.text()
        route.fulfill(response=answer, body=body)

    for path in ("**/whep", "**/call"):
        page.route(path, insert_relay)
    try:
        watch(page, daemon.address)
        page.evaluate("window.watching = callFigures.watchAvatar()")
        page.wait_for_timeout(1000 * conditions.settle)
        page.evaluate("watching.take()")
        first = page.evaluate("callFigures.counted()")
        each: list[Figures] = []
        seen: list[Any] = []
        for link in schedule.states:
            for relay in relays:
                relay.link = link
            page.wait_for_timeout(1000 * conditions.seconds / len(schedule.states))
            part: PaintedFrames = page.evaluate("watching.take()")
            each.append({"rate": link.rate, "latency_ms": spread(encoder_to_screen_ms(part)), "pictures": len(part)})
            seen += part
        last = page.evaluate("callFigures.counted()")
    finally:
        for relay in relays:
            relay.close()
    same_connection = first is not None and last is not None and last["framesDecoded"] >= first["framesDecoded"]
    return {
        "fps": rate(first, last, "framesDecoded") if same_connection else 0.0,
        "latency_ms": spread(encoder_to_screen_ms(seen)),
        "freezes": last["freezeCount"] - first["freezeCount"] if same_connection else None,
        "kbps": kbps(first, last) if same_connection else None,
        "size": [last["frameWidth"], last["frameHeight"]] if same_connection else None,
        "unreadable": count_unreadable(seen),
        "connections": len(relays),
        "packets": {"passed": sum(r.passed for r in relays), "dropped": sum(r.dropped for r in relays)},
        **({"parts": each} if len(each) > 1 else {}),
    }
