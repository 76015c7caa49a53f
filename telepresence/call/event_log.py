"""Log of the events of a call that `/status` lists, such as a new avatar or a change of light."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

log = logging.getLogger("telepresence")

MAX_EVENTS: Final = 16
"""Maximum number of events that `/status` lists; older ones are dropped."""


class EventKind(StrEnum):
    """Kind of an event: its name in `/status` and in the log (docs/protocols-http.md)."""

    CALIBRATION = "calibration"
    QUESTION = "question"
    NEW_AVATAR = "new_avatar"
    PERSON_BACK = "person_back"
    APPEARANCE = "appearance"
    STEPPED_BACK = "stepped_back"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True)
class CallEvent:
    """Event at monotonic second ``at``; ``text`` is a line for people."""

    at: float
    kind: EventKind
    text: str


class EventLog:
    """Bounded log of the newest `MAX_EVENTS` events of one camera session.  Safe for every thread."""

    def __init__(self) -> None:
        self._events: deque[CallEvent] = deque(maxlen=MAX_EVENTS)

    def add(self, kind: EventKind, text: str, stage: str = "track") -> None:
        """Append an event that happens now in ``stage``, and write it to the log."""
        self._events.append(CallEvent(time.monotonic(), kind, text))
        log.info("%s", text, extra={"event": kind, "stage": stage})

    def read(self) -> list[CallEvent]:
        """The newest events, oldest first."""
        return list(self._events)
