"""A worse network than this one, between the daemon and each of its viewers: to see what a call makes of it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from insta_runtime.errors import UserError

QUEUE_MS = 300.0  # what the router of a home holds back before it drops
HELP = "write it like rate=600,delay=20,loss=5,queue=300, with rate=2000:15/500:15/2000 for steps"


@dataclass(frozen=True)
class LinkPlan:
    """What a link does: each packet waits for those before it, takes its time at the bottleneck, and ``delay_s`` more.

    ``rates``: (bit/s, seconds) one after the other since the first packet; the last one lasts.  A rate of 0 is a stall.
    ``queue_s``: a packet that would take longer than this to get through the bottleneck is dropped.
    ``loss``: part of the packets that is lost on the way, by chance.
    """

    rates: tuple[tuple[float, float], ...] = ((math.inf, math.inf),)
    delay_s: float = 0.0
    queue_s: float = QUEUE_MS / 1000
    loss: float = 0.0

    @classmethod
    def parse(cls, text: str) -> LinkPlan:
        """``rate`` in kbit/s, in steps ``rate:seconds`` parted by ``/``; ``delay`` and ``queue`` in ms; ``loss`` in %.

        Raises UserError for anything else.
        """
        values: dict[str, str] = {}
        for part in text.replace(" ", "").split(","):
            name, equals, value = part.partition("=")
            if name not in ("rate", "delay", "queue", "loss") or not equals or name in values:
                raise UserError(f"there is no link {text!r}: {HELP}")
            values[name] = value
        steps = [step.partition(":") for step in values.get("rate", "inf").split("/")]
        try:
            rates = [(1000 * float(rate), float(seconds) if colon else math.inf) for rate, colon, seconds in steps]
            delay, queue = float(values.get("delay", "0")), float(values.get("queue", str(QUEUE_MS)))
            loss = float(values.get("loss", "0"))
        except ValueError:
            raise UserError(f"there is no link {text!r}: {HELP}") from None
        rates[-1] = (rates[-1][0], math.inf)
        held = [rate >= 0.0 and seconds > 0.0 for rate, seconds in rates]
        if not (all(held) and 0.0 <= delay <= 60_000 and 0.0 < queue <= 60_000 and 0.0 <= loss <= 100):
            raise UserError(f"there is no link {text!r}: {HELP}")
        return cls(tuple(rates), delay / 1000, queue / 1000, loss / 100)


class Link:
    """The way to one viewer; time is seconds of any monotonic clock."""

    def __init__(self, plan: LinkPlan, seed: int = 0) -> None:
        self._plan = plan
        self._random = random.Random(seed)  # noqa: S311 - it decides which packets are lost, repeatably
        self._began: float | None = None
        self._free = -math.inf  # when the bottleneck has done with all that it took

    def arrival(self, size: int, now: float) -> float | None:
        """When a packet of ``size`` bytes that is sent at ``now`` arrives; None for one that is lost or dropped."""
        if self._began is None:
            self._began = now
        through = self._through(8 * size, max(now, self._free))
        if through - now > self._plan.queue_s:
            return None
        self._free = through
        return None if self._random.random() < self._plan.loss else through + self._plan.delay_s

    def _through(self, bits: float, start: float) -> float:
        """When ``bits`` that enter the bottleneck at ``start`` have left it."""
        assert self._began is not None
        until = self._began
        for rate, seconds in self._plan.rates:
            until += seconds
            if start >= until:
                continue
            if bits <= rate * (until - start):
                return start + (bits / rate if rate else 0.0)
            bits -= rate * (until - start)
            start = until
        return math.inf
