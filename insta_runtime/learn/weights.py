"""How learned weights reach the display: the newest snapshot wins, and is never a half-trained step."""

from __future__ import annotations

import threading

from insta_runtime.render.renderer import Snapshot


class WeightExchange:
    """A slot between one publisher (learning) and one taker (display).

    A snapshot is a copy of its own, so neither side ever waits for the other's computation.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self.published = 0

    def publish(self, snapshot: Snapshot) -> None:
        """Offer ``snapshot``, which the caller will not touch again."""
        with self._lock:
            self._snapshot = snapshot
            self.published += 1

    def take(self) -> Snapshot | None:
        """The newest snapshot that was not taken yet, or None."""
        with self._lock:
            snapshot, self._snapshot = self._snapshot, None
            return snapshot
