"""Who moves the face at this moment.  One rule, pure.

``auto``: the first in `ORDER` that has just spoken; if none has, the tracker while it sees a face; else nobody, and the
face idles.  Any other ``drive`` is the only one that may move it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

Drive = Literal["auto", "tracker", "zmq", "subscription", "livelink", "vmc", "openseeface", "take"]
Driver = Literal["tracker", "zmq", "subscription", "livelink", "vmc", "openseeface", "take", "idle"]

ORDER: Final[tuple[Driver, ...]] = ("zmq", "subscription", "livelink", "vmc", "openseeface", "take")
"""In `auto`, who speaks over whom: what somebody wrote a program for comes first, what plays by itself last."""
FRESH_S: Final = 0.5
"""A driver has just spoken while its newest message is younger than this."""
SEEN_S: Final = 1.0
"""The tracker sees a face while its newest state is younger than this: a missed picture is no loss."""


def choose(drive: Drive, ages: Mapping[Driver, float | None], seen_s: float | None) -> Driver:
    """The driver of this moment.

    Args:
        ages: seconds since the newest message of each driver that there is (None: none yet).
        seen_s: seconds since the state that the tracker saw last (None: none yet).
    """
    if drive == "auto":
        for driver in ORDER:
            if fresh(ages.get(driver)):
                return driver
    elif drive != "tracker":
        return drive if fresh(ages.get(drive)) else "idle"
    return "tracker" if seen_s is not None and seen_s < SEEN_S else "idle"


def fresh(age_s: float | None) -> bool:
    """Whether a message of this age still moves the face."""
    return age_s is not None and age_s < FRESH_S
