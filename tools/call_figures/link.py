"""A bad network between a browser and the daemon: a relay for their UDP packets.

It sits in the path: candidates in offer and answer are replaced by its own two ports.  Towards the browser it delays,
drops at random, and sends at a limited rate from a queue that drops what does not fit, as a modem's does.
"""

from __future__ import annotations

import heapq
import random
import re
import selectors
import socket
import threading
import time
from dataclasses import dataclass
from typing import Final

CANDIDATE: Final = re.compile(r"^a=candidate:(\S+) (\d+) (udp|UDP) (\d+) (\S+) (\d+) typ host", re.MULTILINE)
LOOPBACK: Final = "127.0.0.1"
OVERHEAD: Final = 28
"""Bytes of IP and UDP around each packet."""

Address = tuple[str, int]


@dataclass(frozen=True)
class Link:
    """``loss`` is a probability, ``rate`` in bit/s (None: no limit); the queue holds ``queue_s`` seconds of it."""

    loss: float = 0.0
    rate: float | None = None
    delay_s: float = 0.020
    queue_s: float = 0.300


class Relay:
    """Passes packets on between one browser and the daemon, over a link that may change at any time."""

    def __init__(self, link: Link, seed: int = 0) -> None:
        self.link = link
        self.dropped = self.passed = 0
        self._random = random.Random(seed)
        self._front, self._back = _open(), _open()
        self._browser: Address | None = None
        self._daemon: Address | None = None
        self._free_at = 0.0  # when the link has sent all that waits
        self._queue: list[tuple[float, int, socket.socket, bytes, Address]] = []
        self._count = 0
        self._going = True
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def offer(self, sdp: str) -> str:
        """The browser's offer, as the daemon is to see it."""
        self._browser, rewritten = _through(sdp, self._back)
        return rewritten

    def answer(self, sdp: str) -> str:
        """The daemon's answer, as the browser is to see it."""
        self._daemon, rewritten = _through(sdp, self._front)
        return rewritten

    def close(self) -> None:
        self._going = False
        self._thread.join()
        self._front.close()
        self._back.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for end in (self._front, self._back):
                selector.register(end, selectors.EVENT_READ)
            while self._going:
                wait = min(0.1, max(0.0, self._queue[0][0] - time.monotonic())) if self._queue else 0.1
                for key, _ in selector.select(wait):
                    self._take(key.fileobj)  # type: ignore[arg-type]
                while self._queue and self._queue[0][0] <= time.monotonic():
                    _due, _count, end, packet, target = heapq.heappop(self._queue)
                    end.sendto(packet, target)

    def _take(self, end: socket.socket) -> None:
        packet, sender = end.recvfrom(65536)
        if end is self._front:
            self._browser = sender
            if self._daemon is not None:
                self._pass(time.monotonic() + self.link.delay_s, self._back, packet, self._daemon)
        elif sender == self._daemon and self._browser is not None:
            due = self._downwards(len(packet) + OVERHEAD)
            if due is not None:
                self._pass(due, self._front, packet, self._browser)

    def _downwards(self, size: int) -> float | None:
        """When a packet of ``size`` bytes reaches the browser; None if it never does."""
        link, now = self.link, time.monotonic()
        self._free_at = max(self._free_at, now)
        if self._random.random() < link.loss or (link.rate is not None and self._free_at - now > link.queue_s):
            self.dropped += 1
            return None
        self.passed += 1
        self._free_at += 8 * size / link.rate if link.rate is not None else 0.0
        return self._free_at + link.delay_s

    def _pass(self, due: float, end: socket.socket, packet: bytes, target: Address) -> None:
        self._count += 1
        heapq.heappush(self._queue, (due, self._count, end, packet, target))


def _open() -> socket.socket:
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    end.bind((LOOPBACK, 0))
    return end


def _through(sdp: str, end: socket.socket) -> tuple[Address, str]:
    """Where a description says that its author is, and the description with ``end`` in that place, alone."""
    found = [match for match in CANDIDATE.finditer(sdp) if match[2] == "1" and ":" not in match[5]]
    if not found:
        raise RuntimeError("there is no address of IPv4 in this description of a session")
    match = next((match for match in found if match[5] == LOOPBACK), found[0])
    foundation, component, transport, priority, host, port = match.groups()
    host = LOOPBACK if host.endswith(".local") else host
    mine = f"a=candidate:{foundation} {component} {transport} {priority} {LOOPBACK} {end.getsockname()[1]} typ host"
    kept = [line for line in sdp.replace("\r\n", "\n").split("\n") if not line.startswith("a=candidate:")]
    at = next(n for n, line in enumerate(kept) if line.startswith("m="))
    kept.insert(next((n for n in range(at + 1, len(kept)) if kept[n].startswith("a=")), len(kept)), mine)
    return (host, int(port)), "\r\n".join(kept)
