"""Handover of weight snapshots from the training thread to the display thread; the newest one wins."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch

from insta_runtime.render.renderer import Snapshot


@dataclass(frozen=True)
class _Published:
    """Published snapshot, its number and, on a GPU, the event after which it is completely written."""

    number: int
    snapshot: Snapshot
    written: torch.cuda.Event | None


class WeightExchange:
    """Triple buffer for snapshots between one publisher (training) and one consumer (display); neither waits.

    One snapshot is in use by the display, one is ready, one may still be being written by the publisher's CUDA stream.
    Snapshots are never changed after publication, and their memory is reused only after the display's stream has read
    them.

    Attributes:
        published: number of the newest published snapshot; the first is 1.
        taken: number of the newest snapshot that the display has taken.
        on_publish: callback with number and snapshot of each publication, called in the publisher's thread; it may keep
            the snapshot but not change it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offers: list[_Published] = []
        self.published = self.taken = 0
        self.on_publish: Callable[[int, Snapshot], None] | None = None

    def publish(self, snapshot: Snapshot) -> None:
        """Publish ``snapshot``, written on the caller's CUDA stream; the caller must not change it afterwards."""
        tensor = next(iter(snapshot.values()))
        written = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None
        with self._lock:
            # Besides the newest, one complete snapshot is kept: the display takes it until the newest is complete.
            complete = [offer for offer in self._offers if _is_complete(offer)] or self._offers[:1]
            self.published += 1
            self._offers = [*complete[-1:], _Published(self.published, snapshot, written)]
        if self.on_publish is not None:
            self.on_publish(self.published, snapshot)

    def take(self) -> Snapshot | None:
        """The newest completely written snapshot if it was not taken before, else None.

        On a GPU the caller's current stream may read it at once; it does not wait for later training steps.
        """
        with self._lock:
            found = next((i for i in reversed(range(len(self._offers))) if _is_complete(self._offers[i])), None)
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


def _is_complete(offer: _Published) -> bool:
    return offer.written is None or offer.written.query()
