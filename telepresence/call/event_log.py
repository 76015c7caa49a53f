"""Log of the events of a call that `/status` lists, such as a new avatar or a change of light."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

log = logging.getLogger("telepresence")

MAX_EVENTS: Final = 16
"""Maximum number of events that `/status` lists; older ones are dropped."""


@dataclass(frozen=True)
class CallEvent:
    """Event of a call at monotonic second ``at``: ``kind`` is a fixed identifier, ``text`` a readable message."""

    at: float
    kind: str
    text: str


class EventLog:
    """Bounded log of the newest `MAX_EVENTS` events of one camera session.  Safe for every thread."""

    def __init__(self) -> None:
        self._events: deque[CallEvent] = deque(maxlen=MAX_EVENTS)

    def add(self, kind: str, text: str) -> None:
        """Append an event with the current time, and write it to the program's log."""
        self._events.append(CallEvent(time.monotonic(), kind, text))
        log.info("%s", text, extra={"event": kind, "stage": "track"})

    def read(self) -> list[CallEvent]:
        """The newest events, oldest first."""
        return list(self._events)
