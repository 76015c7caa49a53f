"""Who moves the face: the tracker or the parameters that arrive over ZeroMQ.  Pure."""

from __future__ import annotations

from typing import Final, Literal

Drive = Literal["tracker", "zmq", "auto"]
Driver = Literal["tracker", "zmq"]

FRESH_S: Final = 0.5
"""In `auto`, ZeroMQ drives while its newest message is younger than this."""


def choose(drive: Drive, message_age_s: float | None) -> Driver:
    """The driver of this moment; ``message_age_s`` is the age of the newest ZeroMQ message (None: none yet)."""
    if drive == "auto":
        return "zmq" if message_age_s is not None and message_age_s < FRESH_S else "tracker"
    return drive
