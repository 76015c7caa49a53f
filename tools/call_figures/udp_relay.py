"""UDP relay between a browser and the daemon that imitates a bad network.

The relay replaces the ICE candidates of offer and answer by its own two ports.  In the direction of the browser it
delays, drops packets at random, and sends at a limited rate from a queue that drops packets when it is full.
"""

from __future__ import annotations

import heapq
import random
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

CANDIDATE: Final = re.compile(r"^a=candidate:(\S+) (\d+) (udp|UDP) (\d+) (\S+) (\d+) typ host", re.MULTILINE)
"""Line of an SDP description with a host candidate."""

LOOPBACK: Final = "127.0.0.1"
"""Address of both ports of the relay."""

OVERHEAD: Final = 28
"""Bytes of the IP and UDP headers of each packet."""

Address = tuple[str, int]


@dataclass(frozen=True)
class LinkQuality:
    """State of the link towards the browser.

    Attributes:
        loss: probability that a packet is lost.
        rate: limit in bit/s; None is unlimited.
        delay_s: seconds that each packet takes.
        queue_s: length of the queue, in seconds of sending at ``rate``.
    """

    loss: float = 0.0
    rate: float | None = None
    delay_s: float = 0.020
    queue_s: float = 0.300


class UdpRelay:
    """Relays packets between one browser and the daemon, in a thread that runs until `close`.

    Attributes:
        link: quality of the link; it may be replaced at any time.
        passed, dropped: number of packets towards the browser that were sent on, and that were lost.

    ``seed`` makes the random losses repeatable; ``clock`` gives the time in seconds.
    """

    def __init__(self, link: LinkQuality, seed: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.link = link
        self._clock = clock
        self.dropped = self.passed = 0
        self._random = random.Random(seed)
        self._front, self._back = _open(), _open()
        self._browser: Address | None = None
        self._daemon: Address | None = None
        self._free_at = 0.0  # when the link has sent everything in its queue
        self._queue: list[tuple[float, int, socket.socket, bytes, Address]] = []
        self._count = 0
        self._running = True
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def rewrite_offer(self, sdp: str) -> str:
        """The browser's offer with the relay's address in place of the browser's."""
        self._browser, rewritten = _replace_candidates(sdp, self._back)
        return rewritten

    def rewrite_answer(self, sdp: str) -> str:
        """The daemon's answer with the relay's address in place of the daemon's."""
        self._daemon, rewritten = _replace_candidates(sdp, self._front)
        return rewritten

    def close(self) -> None:
        """Stop the thread and close both ports."""
        self._running = False
        self._thread.join()
        self._front.close()
        self._back.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for end in (self._front, self._back):
                selector.register(end, selectors.EVENT_READ)
            while self._running:
                wait = min(0.1, max(0.0, self._queue[0][0] - self._clock())) if self._queue else 0.1
                for key, _ in selector.select(wait):
                    self._receive(key.fileobj)  # type: ignore[arg-type]
                while self._queue and self._queue[0][0] <= self._clock():
                    _due, _count, end, packet, target = heapq.heappop(self._queue)
                    end.sendto(packet, target)

    def _receive(self, end: socket.socket) -> None:
        packet, sender = end.recvfrom(65536)
        if end is self._front:
            self._browser = sender
            if self._daemon is not None:
                self._enqueue(self._clock() + self.link.delay_s, self._back, packet, self._daemon)
        elif sender == self._daemon and self._browser is not None:
            due = self._arrival(len(packet) + OVERHEAD)
            if due is not None:
                self._enqueue(due, self._front, packet, self._browser)

    def _arrival(self, size: int) -> float | None:
        """Time at which a packet of ``size`` bytes reaches the browser; None if it is dropped."""
        link, now = self.link, self._clock()
        self._free_at = max(self._free_at, now)
        if self._random.random() < link.loss or (link.rate is not None and self._free_at - now > link.queue_s):
            self.dropped += 1
            return None
        self.passed += 1
        self._free_at += 8 * size / link.rate if link.rate is not None else 0.0
        return self._free_at + link.delay_s

    def _enqueue(self, due: float, end: socket.socket, packet: bytes, target: Address) -> None:
        self._count += 1
        heapq.heappush(self._queue, (due, self._count, end, packet, target))


def _open() -> socket.socket:
    """A UDP socket on a free port of the loopback interface."""
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    end.bind((LOOPBACK, 0))
    return end


def _replace_candidates(sdp: str, end: socket.socket) -> tuple[Address, str]:
    """Address in a session description, and the description with ``end`` as its only candidate.

    RuntimeError if it has no IPv4 host candidate.
    """
    found = [match for match in CANDIDATE.finditer(sdp) if match[2] == "1" and ":" not in match[5]]
    if not found:
        raise RuntimeError("no address of IPv4 in this session description: run browser and daemon on one machine")
    match = next((match for match in found if match[5] == LOOPBACK), found[0])
    foundation, component, transport, priority, host, port = match.groups()
    host = LOOPBACK if host.endswith(".local") else host
    mine = f"a=candidate:{foundation} {component} {transport} {priority} {LOOPBACK} {end.getsockname()[1]} typ host"
    kept = [line for line in sdp.replace("\r\n", "\n").split("\n") if not line.startswith("a=candidate:")]
    at = next(n for n, line in enumerate(kept) if line.startswith("m="))
    kept.insert(next((n for n in range(at + 1, len(kept)) if kept[n].startswith("a=")), len(kept)), mine)
    return (host, int(port)), "\r\n".join(kept)
