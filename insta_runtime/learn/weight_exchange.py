"""How learned weights reach the display: the newest snapshot wins, and is never a half-trained step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch

from insta_runtime.render.renderer import Snapshot


@dataclass(frozen=True)
class _Offer:
    """A snapshot, its number and, on a GPU, the event after which it is whole."""

    number: int
    snapshot: Snapshot
    written: torch.cuda.Event | None


class WeightExchange:
    """A triple buffer between one publisher (learning) and one taker (display); neither ever waits for the other.

    One snapshot is with the display, one lies ready, one may still be being written by the publisher's stream.  Each is
    a copy of its own that nothing writes to again, and its memory is not used anew before the display's stream has read
    it.

    Attributes:
        published, taken: number of the newest snapshot that was published, taken; they count from 1.
        watch: hears number and snapshot of each publication, in the publisher's thread, and may keep but not change it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offers: list[_Offer] = []
        self.published = self.taken = 0
        self.watch: Callable[[int, Snapshot], None] | None = None

    def publish(self, snapshot: Snapshot) -> None:
        """Offer ``snapshot``, which the caller will not touch again and whose copies its current stream makes."""
        tensor = next(iter(snapshot.values()))
        written = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None
        with self._lock:
            # Besides the newest, only what is whole is worth keeping: it is what the display gets meanwhile.
            whole = [offer for offer in self._offers if _is_whole(offer)] or self._offers[:1]
            self.published += 1
            self._offers = [*whole[-1:], _Offer(self.published, snapshot, written)]
        if self.watch is not None:
            self.watch(self.published, snapshot)

    def take(self) -> Snapshot | None:
        """The newest whole snapshot, unless it or a newer one was taken before; None if there is none.

        On a GPU the caller's current stream may read it at once, without waiting for what learning does next.
        """
        with self._lock:
            found = next((i for i in reversed(range(len(self._offers))) if _is_whole(self._offers[i])), None)
            if found is None:
                return None
            offer = self._offers[found]
            self._offers = self._offers[found + 1 :]
            self.taken = offer.number
        if offer.written is not None:
            for tensor in offer.snapshot.values():
                stream = torch.cuda.current_stream(tensor.device)
                stream.wait_event(offer.written)
                tensor.record_stream(stream)
        return offer.snapshot


def _is_whole(offer: _Offer) -> bool:
    return offer.written is None or offer.written.query()
