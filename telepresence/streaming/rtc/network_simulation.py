"""Simulation of a slow, lossy network between the daemon and each viewer, for tests and measurements."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

from insta_runtime.errors import UserError

QUEUE_MS: Final = 300.0
"""Default length of the bottleneck's queue in milliseconds, typical of a home router."""
HELP: Final = "write it like rate=600,delay=20,loss=5,queue=300, with rate=2000:15/500:15/2000 for steps"
"""Syntax of a simulated link, as given in error messages."""


@dataclass(frozen=True)
class LinkProfile:
    """Parameters of a simulated link: a bottleneck of limited rate with a queue, a constant delay, and random loss.

    ``rates``: steps (bit/s, seconds) since the first packet; the last step lasts for ever.  A rate of 0 is a stall.
    ``delay_s``: delay added to every packet, in seconds.
    ``queue_s``: a packet that would need longer than this, in seconds, to pass the bottleneck is dropped.
    ``loss``: part of the packets that is lost, 0 to 1.
    """

    rates: tuple[tuple[float, float], ...] = ((math.inf, math.inf),)
    delay_s: float = 0.0
    queue_s: float = QUEUE_MS / 1000
    loss: float = 0.0

    @classmethod
    def parse(cls, text: str) -> LinkProfile:
        """Parse the text of the setting ``stream.link``, like ``rate=600,delay=20,loss=5,queue=300``.

        ``rate`` is in kbit/s, or in steps ``rate:seconds`` separated by ``/``; ``delay`` and ``queue`` are in ms,
        ``loss`` in %.  Raises UserError for any other text.
        """
        error = UserError(f"stream.link {text!r} is not valid: {HELP}")
        values: dict[str, str] = {}
        for part in text.replace(" ", "").split(","):
            name, equals, value = part.partition("=")
            if name not in ("rate", "delay", "queue", "loss") or not equals or name in values:
                raise error
            values[name] = value
        steps = [step.partition(":") for step in values.get("rate", "inf").split("/")]
        try:
            rates = [(1000 * float(rate), float(seconds) if colon else math.inf) for rate, colon, seconds in steps]
            delay, queue = float(values.get("delay", "0")), float(values.get("queue", str(QUEUE_MS)))
            loss = float(values.get("loss", "0"))
        except ValueError:
            raise error from None
        rates[-1] = (rates[-1][0], math.inf)
        valid = all(rate >= 0.0 and seconds > 0.0 for rate, seconds in rates)
        if not (valid and 0.0 <= delay <= 60_000 and 0.0 < queue <= 60_000 and 0.0 <= loss <= 100):
            raise error
        return cls(tuple(rates), delay / 1000, queue / 1000, loss / 100)


class SimulatedLink:
    """State of the simulated link to one viewer; times are seconds of any monotonic clock."""

    def __init__(self, profile: LinkProfile, seed: int = 0) -> None:
        """``seed`` decides which packets are lost, repeatably."""
        self._profile = profile
        self._random = random.Random(seed)  # noqa: S311 - not used for security
        self._began: float | None = None
        self._idle_from = -math.inf  # time at which the bottleneck will have sent all packets so far

    def arrival(self, size: int, now: float) -> float | None:
        """Arrival time of a packet of ``size`` bytes that is sent at ``now``; None if it is lost or dropped."""
        if self._began is None:
            self._began = now
        passed = self._pass_bottleneck(8 * size, max(now, self._idle_from))
        if passed - now > self._profile.queue_s:
            return None
        self._idle_from = passed
        return None if self._random.random() < self._profile.loss else passed + self._profile.delay_s

    def _pass_bottleneck(self, bits: float, start: float) -> float:
        """Time at which ``bits`` that enter the bottleneck at ``start`` have left it."""
        assert self._began is not None
        until = self._began
        for rate, seconds in self._profile.rates:
            until += seconds
            if start >= until:
                continue
            if bits <= rate * (until - start):
                return start + (bits / rate if rate else 0.0)
            bits -= rate * (until - start)
            start = until
        return math.inf
