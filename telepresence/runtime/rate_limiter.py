"""Rate limits by token buckets."""

from __future__ import annotations

import math


class RateLimiter:
    """Token bucket: allows ``rate`` events a second on average, and at most ``burst`` at once; it starts full.

    Time is passed in as seconds of any clock; a clock that goes back adds no tokens.  For one thread at a time.
    """

    def __init__(self, rate: float, burst: float) -> None:
        """``rate`` in events a second and ``burst`` in events, both above 0."""
        self._rate, self._burst = rate, burst
        self._tokens, self._updated = burst, -math.inf

    def available(self, now: float) -> float:
        """Number of tokens in the bucket at ``now``, a fraction included; it changes nothing."""
        return min(self._burst, self._tokens + self._rate * max(0.0, now - self._updated))

    def acquire(self, now: float) -> bool:
        """Take one token at ``now``; returns False, and takes none, if less than one is left."""
        tokens = self.available(now)
        allowed = tokens >= 1.0
        self._tokens, self._updated = tokens - allowed, now
        return allowed

    def wait_s(self, now: float) -> float:
        """Seconds from ``now`` until `acquire` succeeds; 0.0 if it does at once."""
        return max(0.0, 1.0 - self.available(now)) / self._rate
