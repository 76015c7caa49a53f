"""Events of a call that `/status` lists, such as a new avatar or a change of light."""

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
    """Event at monotonic second ``at``; ``kind`` is a fixed word for programs, ``text`` a line for people."""

    at: float
    kind: str
    text: str


class EventLog:
    """The newest events of one camera session.  Every method may be called from any thread."""

    def __init__(self) -> None:
        self._events: deque[CallEvent] = deque(maxlen=MAX_EVENTS)

    def add(self, kind: str, text: str) -> None:
        """Append an event that happens now, and write it to the log."""
        self._events.append(CallEvent(time.monotonic(), kind, text))
        log.info("%s", text, extra={"event": kind, "stage": "track"})

    def read(self) -> list[CallEvent]:
        """The newest events, oldest first."""
        return list(self._events)
