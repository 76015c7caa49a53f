"""The stream over bad networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from playwright.sync_api import Page, Route

from call_figures.browser import chromium, observed, watch
from call_figures.conditions import Conditions
from call_figures.daemon import Daemon
from call_figures.delay import Seen, lateness, unreadable
from call_figures.goals import Figures, Goal, spread
from call_figures.link import Link, Relay
from call_figures.stream import of_status, rate


@dataclass(frozen=True)
class Course:
    """A link that changes: each state lasts for a part of the time that is measured, and the first from the start."""

    name: str
    states: tuple[Link, ...]


COURSES: Final = (
    Course("5 % loss", (Link(loss=0.05),)),
    Course("600 kb/s", (Link(rate=600e3),)),
    Course("300 kb/s", (Link(rate=300e3),)),
    Course("2 M, 500 k, 2 M", (Link(rate=2e6), Link(rate=500e3), Link(rate=2e6))),
)


def links(conditions: Conditions, only: str | None = None) -> tuple[Figures, list[Goal]]:
    """Rate and latency (with the link's own 20 ms) over four bad links, each to a new page."""
    figures: Figures = {}
    goals = []
    with conditions.call() as daemon, chromium() as browser:
        for course in COURSES:
            if only is not None and only not in course.name:
                continue
            page = observed(browser)
            figures[course.name] = found = _over(page, daemon, course, conditions)
            page.context.close()
            goals += [
                Goal(f"{course.name}: pictures a second", found["fps"], 20.0, 28.0, least=True),
                Goal("p50", found["latency_ms"]["p50"], 300.0, 150.0, " ms"),
            ]
        status = daemon.status()
    return {"links": figures, **of_status(status)}, goals


def _over(page: Page, daemon: Daemon, course: Course, conditions: Conditions) -> Figures:
    relays: list[Relay] = []
    link = course.states[0]

    def pass_through(route: Route) -> None:
        if route.request.method != "POST":
            route.continue_()
            return
        relay = Relay(link, seed=len(relays))
        relays.append(relay)
        answer = route.fetch(post_data=relay.offer(route.request.post_data or ""))
        body = relay.answer(answer.text()) if answer.status == 201 else answer.text()
        route.fulfill(response=answer, body=body)

    for path in ("**/whep", "**/call"):
        page.route(path, pass_through)
    try:
        watch(page, daemon.address)
        page.evaluate("window.watching = callFigures.watchAvatar()")
        page.wait_for_timeout(1000 * conditions.settle)
        page.evaluate("watching.take()")
        first = page.evaluate("callFigures.counted()")
        each: list[Figures] = []
        seen: list[Any] = []
        for link in course.states:
            for relay in relays:
                relay.link = link
            page.wait_for_timeout(1000 * conditions.seconds / len(course.states))
            part: Seen = page.evaluate("watching.take()")
            each.append({"rate": link.rate, "latency_ms": spread(lateness(part)), "pictures": len(part)})
            seen += part
        last = page.evaluate("callFigures.counted()")
    finally:
        for relay in relays:
            relay.close()
    steady = first is not None and last is not None and last["framesDecoded"] >= first["framesDecoded"]
    return {
        "fps": rate(first, last, "framesDecoded") if steady else 0.0,
        "latency_ms": spread(lateness(seen)),
        "freezes": last["freezeCount"] - first["freezeCount"] if steady else None,
        "kbps": round(8.0 * (last["bytesReceived"] - first["bytesReceived"]) / (last["timestamp"] - first["timestamp"]))
        if steady
        else None,
        "size": [last["frameWidth"], last["frameHeight"]] if steady else None,
        "unreadable": unreadable(seen),
        "connections": len(relays),
        "packets": {"passed": sum(r.passed for r in relays), "dropped": sum(r.dropped for r in relays)},
        **({"parts": each} if len(each) > 1 else {}),
    }
