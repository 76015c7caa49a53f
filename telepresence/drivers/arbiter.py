"""Selection of the driver that moves the face: one rule, without state.

In ``auto`` it is the first driver in `ORDER` that has a recent message; otherwise the tracker while it tracks a face;
otherwise the face idles.  Any other driver mode names the only driver that may move the face.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

DriverMode = Literal["auto", "tracker", "zmq", "subscription", "livelink", "vmc", "openseeface", "take"]
"""Value of ``--drive``: automatic selection, or the only driver that may move the face."""
DriverId = Literal["tracker", "zmq", "subscription", "livelink", "vmc", "openseeface", "take", "idle"]
"""Name of a driver, or ``idle`` if no driver moves the face."""

ORDER: Final[tuple[DriverId, ...]] = ("zmq", "subscription", "livelink", "vmc", "openseeface", "take")
"""Priority of the drivers in ``auto``: programs that send messages first, recorded takes last."""
FRESH_S: Final = 0.5
"""Maximum age, in seconds, of the newest message of a driver that moves the face."""
SEEN_S: Final = 1.0
"""Maximum age, in seconds, of the newest tracked state; longer than a frame, so that a missed frame is not a loss."""


def choose_driver(drive: DriverMode, ages: Mapping[DriverId, float | None], seen_s: float | None) -> DriverId:
    """Select the driver that moves the face now.

    Args:
        drive: the driver mode.
        ages: seconds since the newest message of each active driver (None: no message yet).
        seen_s: seconds since the newest tracked state (None: none yet).
    """
    if drive == "auto":
        for driver in ORDER:
            if is_fresh(ages.get(driver)):
                return driver
    elif drive != "tracker":
        return drive if is_fresh(ages.get(drive)) else "idle"
    return "tracker" if seen_s is not None and seen_s < SEEN_S else "idle"


def is_fresh(age_s: float | None) -> bool:
    """Whether a message of this age, in seconds, still moves the face."""
    return age_s is not None and age_s < FRESH_S
